"""Systems by name: presets in ``configs/systems`` and files of one's own."""

from __future__ import annotations

from dysharp_env.config import ConfigError, find_config, parse_spec, read_yaml
from dysharp_env.system.spec import SystemSpec


def load_system(name_or_path: str, num_gpus: int | None = None) -> SystemSpec:
    """Returns the system of a preset name or YAML path.

    Args:
        name_or_path: Preset in ``configs/systems``, or a path ending in .yaml or .yml.
        num_gpus: Use this many of the system's GPUs; links and planes stay as they are.

    Raises:
        ConfigError: No such system, a wrong key or value in it, or more or fewer GPUs asked for than it can give.
    """
    path = find_config("systems", name_or_path)
    source = f"systems/{name_or_path}" if path.stem == name_or_path else name_or_path
    system = parse_spec(SystemSpec, read_yaml(path), source=source)
    if num_gpus is None:
        return system
    if not 2 <= num_gpus <= system.num_gpus:
        raise ConfigError(f"gpus={num_gpus}: system '{system.name}' allows 2 to {system.num_gpus}")
    return system.with_changes({"num_gpus": num_gpus})
