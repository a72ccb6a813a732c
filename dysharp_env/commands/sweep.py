"""``--sweep``: the same comparison at several sizes, one option for every command that has it."""

from __future__ import annotations

import argparse
from typing import NamedTuple

from dysharp_env.config import ConfigError, parse_spec, require_choice
from dysharp_env.workload import Scenario, ScenarioSpec

# What may be swept, as results call it.
SWEPT = {"tokens": "tokens per GPU", "gpus": "GPUs", "model": "model"}

_MOST_VALUES = 1000


class Sweep(NamedTuple):
    """What is swept, and over which values: numbers in order, or names of models as given."""

    key: str
    values: tuple[int | str, ...]

    @property
    def is_of_numbers(self) -> bool:
        """Whether values have an order, so that something may happen between two of them."""
        return self.key != "model"

    def scenarios(self, spec: ScenarioSpec) -> list[Scenario]:
        """Returns a scenario with each of the values in place of its own.

        Raises:
            ConfigError: One is wrong, or does not fit the others.
        """
        given = spec.model_dump()
        return [
            parse_spec(ScenarioSpec, {**given, self.key: value}, source=f"sweep {self.key}={value}").build()
            for value in self.values
        ]


def add_sweep_option(parser: argparse.ArgumentParser, keys: tuple[str, ...], default: str | None = None) -> None:
    """Adds ``--sweep``, which ``read_sweep`` reads."""
    forms = " or ".join(f"{key}={'A,B,...' if key == 'model' else 'N,N,...'}" for key in keys)
    text = f"{forms}: do it for each of these, in place of the option of that name; without a name tokens are meant"
    text += f" (default: {default})" if default else ""
    parser.add_argument("--sweep", default=default, metavar="WHAT=X,X,...", help=text)


def read_sweep(given: str, keys: tuple[str, ...]) -> Sweep:
    """Returns the sweep that an option names.

    Raises:
        ConfigError: It is of nothing known, or its values are wrong.
    """
    key, _, listed = given.rpartition("=")
    key = require_choice(f"sweep='{given}'", key or "tokens", keys)
    values = [value.strip() for value in listed.split(",")]
    if len(values) > _MOST_VALUES:
        raise ConfigError(f"sweep='{given}' has {len(values)} values; at most {_MOST_VALUES} are swept")
    if key == "model":
        if not all(values) or len({*values}) < len(values):
            raise ConfigError(f"sweep='{given}' must be names of different models, such as model=olmoe,deepseek-v3")
        return Sweep(key, tuple(values))
    if not all(value.isdecimal() and len(value) < 10 and int(value) > 0 for value in values) or len(
        {*map(int, values)}
    ) < len(values):
        raise ConfigError(f"sweep='{given}' must be different whole numbers, such as {key}=8,16,32")
    return Sweep(key, tuple(sorted(map(int, values))))
