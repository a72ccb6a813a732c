"""When things happen: the compiled discrete-event engine, its decision points and its slow readable twin."""

from dysharp_env.simulator.jit.cache import kernel_cache

# Compiled code is looked for when functions are decorated, that is on import: whatever decorates comes in here.
with kernel_cache():
    from dysharp_env.simulator.kernel import loop as _loop  # noqa: F401
    from dysharp_env.simulator.state import routed as _routed  # noqa: F401
