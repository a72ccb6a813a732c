"""What is tuned for: a model on a machine with its routing, and which of that is searched, chosen and tested on.

Of a trace the parts are its splits; of a generator, and of loads that tokens are sampled from, seeds apart.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from dysharp_env.commands.options import MOST_MINUTES, MOST_RENAMINGS
from dysharp_env.config import Spec, parse_spec
from dysharp_env.schedules import Problem
from dysharp_env.system import Hardware
from dysharp_env.workload.suite import SuiteEntry, SuiteSpec
from dysharp_env.workload.traces import is_trace_name

Part = Literal["train", "validation", "test"]
_FIRST_SEED: dict[Part, int] = {"train": 0, "validation": 10_000, "test": 20_000}


class TuneSpec(Spec):
    """A tuning run."""

    system: str
    """A system preset or YAML file."""
    gpus: int | None = None
    """Use that many of the system's GPUs; none means all."""
    hardware: Hardware = "dynamic-multimem"
    """``today``: without what is only proposed."""
    model: str
    """A model preset or YAML file."""
    routing: str
    """A trace, FILE.npz:NAME for loads, or a generator's name."""
    tokens: tuple[int, ...] = Field(min_length=1)
    """Tokens per GPU that are tuned for, in order."""
    minutes: float = Field(gt=0, le=MOST_MINUTES)
    """Of wall time."""
    train: int = Field(default=4, ge=1, le=1000)
    """Layers of each number of tokens that plans are searched on."""
    validation: int = Field(default=4, ge=1, le=1000)
    """Layers that choose among what was found."""
    test: int = Field(default=3, ge=1, le=1000)
    """Layers that are reported."""
    renamings: int = Field(default=2, ge=2, le=MOST_RENAMINGS)
    """Numberings of the GPUs that each layer of validation and test is played under."""
    seed: int = Field(default=0, ge=0)
    """Of the search."""

    @field_validator("tokens")
    @classmethod
    def _check_tokens(cls, tokens: tuple[int, ...]) -> tuple[int, ...]:
        if min(tokens) < 1 or list(tokens) != sorted({*tokens}):
            raise ValueError(f"{list(tokens)} must be different numbers of at least 1, in order")
        return tokens

    def entry(self, tokens: int, part: Part) -> SuiteEntry:
        """Returns the layers of one part and number of tokens as an entry of a suite.

        Raises:
            ConfigError: There cannot be a workload of so many tokens, or a machine of so many GPUs.
        """
        count = {"train": self.train, "validation": self.validation, "test": self.test}[part]
        same = {name: getattr(self, name) for name in ("system", "gpus", "hardware", "model", "routing")}
        split = part if is_trace_name(self.routing) else "all"
        own = {"tokens": tokens, "split": split, "seeds": (_FIRST_SEED[part], count)}
        return parse_spec(SuiteEntry, {**same, **own}, source="tune")

    def problems(self, tokens: int, part: Part) -> list[Problem]:
        """Returns the layers of one part and number of tokens: of training each once with other numbers for the GPUs.

        Raises:
            ConfigError: A name is unknown, or the parts do not fit each other.
        """
        suite = SuiteSpec(name=f"{part} of tune", workloads=(self.entry(tokens, part),))
        drawn = Problem.of_suite(suite.draw())
        if part == "train":
            return [problem.renamed(place % 4) for place, problem in enumerate(drawn)]
        return [problem.renamed(renaming) for renaming in range(self.renamings) for problem in drawn]
