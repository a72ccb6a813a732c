"""When things happen: the compiled discrete-event engine, its decision points and its slow readable twin."""

from dysharp_env.simulator.cache import kernel_cache

# Compiled code is looked for when functions are decorated, that is on import: whatever decorates comes in here.
with kernel_cache():
    from dysharp_env.simulator import kernel as _kernel  # noqa: F401
    from dysharp_env.simulator import routed as _routed  # noqa: F401
