"""What takes minutes says so first; what would never end, or fits in no memory, is refused."""

from __future__ import annotations

import re

import pytest

from dysharp_env.__main__ import main
from dysharp_env.commands import estimate
from dysharp_env.workload import room

SMALL = ["--model", "olmoe", "--gpus", "4", "--tokens", "64", "--routing", "uniform"]


def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *SMALL]) == 0
    assert "will take" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["simulate"], "1 simulation of up to 2,048"),
        (["simulate", "--resolution", "packet"], "1 simulation of up to 2,048"),
        (["compare", "--schedule", "dysharp", "--schedule", "deepep"], "2 simulations of up to 2,048"),
        (
            ["compare", "--schedule", "dysharp", "--schedule", "deepep", "--sweep", "tokens=16,32"],
            "4 simulations of up to 1,024",
        ),
        (
            ["balance", "--schedule", "deepep", "--schedule", "deepep+moonep", "--sweep", "16,32", "--count", "2"],
            "8 simulations of up to 1,024",
        ),
    ],
)
def test_what_takes_long_says_how_long_first(
    argv: list[str], what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_SAID_S", 1e-9), ("_TRIED_S", 0.0), ("_TRIAL_SLOTS", 200), ("_LOOK_S", 1e-4)):
        monkeypatch.setattr(estimate, name, value)
    assert main([*argv, *SMALL]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(what) and re.search(r"will take about \d+ (s|min)", first), first


def test_a_larger_layer_is_expected_to_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_SLOT_S", 1.0)
    monkeypatch.setattr(estimate, "_TRIED_S", 1e9)
    told: list[str] = []
    monkeypatch.setattr(estimate, "notice", told.append)
    assert main(["simulate", *SMALL]) == 0
    assert "about 34 min 8 s" in told[0]


def test_what_would_never_end_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_SLOT_S", 1e6)
    monkeypatch.setattr(estimate, "_TRIED_S", 1e99)
    assert main(["simulate", *SMALL]) == 2
    assert re.fullmatch(r"error: 1 simulation of .* would take about 23704 days; .*\n", capsys.readouterr().err)


@pytest.mark.parametrize("size", [["--tokens", "1000000"], ["--tokens", "1000000,1,1,1"]])
def test_what_fits_in_no_memory_is_refused(
    size: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_meminfo", lambda: 2 << 30)
    assert main(["simulate", *SMALL, *size]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: \d+ tokens with top_k=8 .* need about [\d.]+ GB of memory; 2 GB are free\n", err), err


def test_the_memory_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(room, "_meminfo", lambda: 5 << 30)
    monkeypatch.setattr(room, "_left", lambda limit, _: 3 << 30 if limit == "memory.max" else None)
    assert room.free_bytes() == 3 << 30
    monkeypatch.undo()
    assert (room.free_bytes() or 1) > 0


def test_a_sweep_has_so_many_values(capsys: pytest.CaptureFixture[str]) -> None:
    listed = ",".join(map(str, range(1, 5000)))
    assert main(["compare", *SMALL, "--sweep", f"tokens={listed}"]) == 2
    assert "has 4999 values; at most 1000 are swept" in capsys.readouterr().err
    assert main(["compare", *SMALL, "--sweep", "tokens=1," + "9" * 5000]) == 2
    assert "must be different whole numbers" in capsys.readouterr().err
