"""What may be wrong with a machine: links, planes, a GPU that comes late, reduction slots that others hold.

A fault costs time and nothing else: all tokens arrive, and all sums are the same. By default nothing is wrong. How
large the faults of presets are was set, not measured. A GPU that computes slowly is ``slow_gpu`` of a system, and a
switch without what is only proposed ``hardware`` of a scenario.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from dysharp_env.config import ConfigError, Spec, did_you_mean, flat_keys, load_spec, parse_spec, preset_names
from dysharp_env.files import parse_yaml
from dysharp_env.system.numbers import CountOrZero, Micros

Slowness = Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)]


class FaultSpec(Spec):
    """What is wrong with a machine. Where one GPU has the fault it is GPU 0, and where one plane has it plane 0."""

    slow_link: Slowness = 1.0
    """Time of a flit on the links of GPU 0, both directions and all planes, over that on others, in thousandths: 2 for
    links that have come up with half of their lanes."""
    slow_plane: Slowness = 1.0
    """Time of a flit on the links between plane 0 and all GPUs over that on others, in thousandths. Planes are told
    apart at packet resolution only: a vector is spread over all of them and takes as long as its slowest part, so that
    at token resolution all links are as slow."""
    dead_planes: CountOrZero = 0
    """Planes that carry nothing. Addresses are hashed over the others; rate, ports, buffers and reduction units of the
    dead ones are gone."""
    late_us: Micros = 0.0
    """How much later than the others GPU 0 starts its kernels, microseconds. Its memory and links serve from the
    beginning. Who exchanges counts or meets at a barrier before dispatch waits for it."""
    replay_every: CountOrZero = 0
    """Every such data packet on a link is damaged and crosses it again; 0: none is. As links retry from the damaged
    packet on, what follows waits for a round trip between GPU and switch as well, on the packet's plane: at token
    resolution, where planes are one, the link stands still for a plane's share of it. Control flits are never hit."""
    taken_slots: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the accumulator slots of every reduction unit that others hold; one slot is always left."""


def read_faults(given: str) -> dict[str, Any]:
    """Returns settings of a ``FaultSpec`` that are named.

    Args:
        given: A preset in ``configs/faults``, a path ending in .yaml or .yml, or settings such as
            ``slow_link=2,late_us=20``; ``none`` is no fault.

    Raises:
        ConfigError: There is no such preset, file or setting, or a value is wrong.
    """
    if given == "none":
        return FaultSpec().model_dump()
    if "=" not in given:
        names = ["none", *preset_names("faults")]
        if given not in names and not given.endswith((".yaml", ".yml")):
            allowed = f"choose from {names}, a .yaml, or settings such as slow_link=2,late_us=20"
            raise ConfigError(f"faults='{given}' is unknown; {allowed}{did_you_mean(given, names)}")
        return load_spec(FaultSpec, "faults", given).model_dump()
    settings: dict[str, Any] = {}
    for pair in given.split(","):
        key, _, value = (part.strip() for part in pair.partition("="))
        if key not in flat_keys(FaultSpec):
            known = flat_keys(FaultSpec)
            raise ConfigError(f"faults='{given}': '{key}' is no fault; choose from {known}{did_you_mean(key, known)}")
        if key in settings:
            raise ConfigError(f"faults='{given}' names '{key}' twice")
        settings[key] = _number(value)
    return parse_spec(FaultSpec, settings, source="faults").model_dump()


def _number(text: str) -> Any:
    """Returns what YAML takes a text for if that is a number, else the text, which the spec refuses."""
    try:
        value = parse_yaml(text)
    except ConfigError:
        return text
    return value if isinstance(value, int | float) and not isinstance(value, bool) else text
