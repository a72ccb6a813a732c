"""Whatever number an option is given, what would never end or fit in no memory is refused, in one line and at once."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest

import agents.__main__
from agents.training.spec import TrainSpec
from agents.tuning.spec import TuneSpec
from dysharp_env.__main__ import build_parser, main
from dysharp_env.config import Spec
from dysharp_env.workload.recording import RecordingSpec
from tests.corpus.parsers import PARSERS
from tests.ending import fault_of, run_forked

MANY = "1000000000000"
OUT = "{out}"  # stands for a path in a folder of the test's own
LOADS = "loads.json"  # a file in that folder
# What a command needs beside the option that is tried, by its name.
GIVEN = {
    "trace import": ["--output", f"{OUT}.npz", "--format", "loads", "--top-k", "2", LOADS],
    "trace place": ["recorded", "--gpus", "8", "--slots", "8", "--output", f"{OUT}.json"],
    "trace info": ["recorded"],
    "trace record": ["--output", f"{OUT}.npz"],
    "trace generate": ["--model", "olmoe", "--routing", "uniform", "--output", f"{OUT}.npz"],
    "trace convert": ["recorded", "--output", f"{OUT}.npz"],
    "agents.ablate": ["no-such-run"],
    "agents.distil": ["reference", "--out", OUT],
    "agents.evaluate": ["--policy", "dysharp"],
    "agents.exact": ["--policy", "dysharp"],
    "agents.headroom": ["--suite", "smoke"],
    "agents.plans": ["--suite", "smoke", "--out", f"{OUT}.yaml"],
    "agents.search": ["--suite", "smoke", "--out", f"{OUT}.yaml"],
    "agents.sensitivity": ["--policy", "dysharp"],
    "agents.train": ["--config", "tiny", "--run-dir", OUT],
    "agents.tune": [
        *("--system", "dgx-h100", "--model", "olmoe", "--routing", "uniform", "--tokens", "64", "--out", OUT),
    ],
}
# Numbers that may be as large as one likes: seeds, and tokens of a drawing, of which no more are shown than there are.
UNLIMITED = {"--seed", "--timeline-tokens"}


def options() -> Iterator[tuple[str, str]]:
    """Yields every option of a number of every command, behind the command's name."""
    (commands,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    parsers: dict[str, argparse.ArgumentParser] = {}
    for name, parser in commands.choices.items():
        inner = [each.choices for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
        parsers |= {f"{name} {action}": each for nest in inner for action, each in nest.items()} or {name: parser}
    for name in agents.__main__.COMMANDS:
        module = f"agents.{name}.__main__" if name in agents.__main__._PACKAGES else f"agents.{name}"
        parsers[f"agents.{name}"] = importlib.import_module(module).build().parser
    for name, parser in parsers.items():
        for action in parser._actions:
            if action.type is not None and not UNLIMITED & {*action.option_strings}:
                yield name, action.option_strings[0]


def command(name: str, option: str, folder: Path) -> Callable[[], int]:
    """Returns a command with a large number for an option."""
    loads = folder / LOADS
    loads.write_bytes(PARSERS["import loads"].whole())
    given = [each.replace(OUT, str(folder / "out")).replace(LOADS, str(loads)) for each in GIVEN.get(name, [])]
    call: Callable[[list[str]], int]
    if name.startswith("agents."):
        call, words = agents.__main__.main, [name.removeprefix("agents.")]
    else:
        call, words = main, name.split()
    if option in given:
        given = given[: (place := given.index(option))] + given[place + 2 :]
    return partial(call, [*words, *given, option, MANY])


DIGITS = "9" * 5000  # more than Python makes a number of


@pytest.mark.parametrize(
    "words",
    [
        ["simulate", "--gpus", DIGITS],
        ["simulate", "--tokens", f"1,{DIGITS}"],
        ["simulate", "--layer-index", DIGITS],
        ["simulate", "--placement", f"eplb:{DIGITS}"],
        ["simulate", "--routing", f"power-law:{DIGITS}"],
        ["simulate", "--schedule", f"deepep+eplb:{DIGITS}"],
        ["simulate", "--faults", f"slow_link={DIGITS}"],
        ["compare", "--sweep", f"tokens={DIGITS}"],
        ["trace", "convert", "recorded", "--output", "x.npz", "--window", f"0:{DIGITS}"],
        ["agents", "tune", *GIVEN["agents.tune"], "--tokens", f"1,{DIGITS}"],
        ["agents", "train", "--config", "tiny", "--set", f"total_decisions={DIGITS}"],
    ],
)
def test_a_text_of_many_digits_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert (agents.__main__.main(words[1:]) if words[0] == "agents" else main(words)) == 2
    assert fault_of(2, *capsys.readouterr()) is None


# Whole numbers of settings whose most a system, a model, a trace or another setting says, moments of a run, and seeds.
ELSEWHERE = {"gpus", "experts", "top_k", "layer_index", "tokens", "batch_size", "seed"}
ELSEWHERE |= {"eval_every_decisions", "checkpoint_every_decisions"}


def whole_numbers(spec: type[Spec], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Yields dotted names of the settings that are whole numbers, and what limits them."""
    for name, field in spec.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        for section in (each for each in kinds if isinstance(each, type) and issubclass(each, Spec)):
            yield from whole_numbers(section, f"{prefix}{name}.")
        if int in kinds:
            yield f"{prefix}{name}", field.metadata


@pytest.mark.parametrize("spec", [TrainSpec, TuneSpec, RecordingSpec])
def test_whole_numbers_of_settings_have_a_most(spec: type[Spec]) -> None:
    found = dict(whole_numbers(spec))
    assert len(found) >= 4
    unlimited = {name for name, limits in found.items() if not any(hasattr(each, "le") for each in limits)}
    assert {name.rpartition(".")[2] for name in unlimited} <= ELSEWHERE


@pytest.mark.parametrize(("name", "option"), [*options()])
def test_a_large_number_is_refused(name: str, option: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (ended,) = run_forked([partial(command, name, option, tmp_path)], tmp_path)
    capfd.readouterr()
    assert ended.fault() is None
    assert not [*tmp_path.glob("out*")]
    assert MANY in ended.err or f"{float(MANY):g}" in ended.err
