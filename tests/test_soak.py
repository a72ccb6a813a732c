"""What ``make soak`` tries for an hour, tried for a moment; and what it does when a property is broken."""

import json
from pathlib import Path

import pytest

from tests import soak

# The other properties are tried on more seeds by tests of their own.
QUICK = ("names_do_not_matter_to_bounds", "bounds_fall_as_machines_get_faster", "environments_keep_their_word")


@pytest.mark.parametrize("group", range(4))
def test_nothing_is_found_in_a_moment(group: int) -> None:
    for seed in range(group * 10, group * 10 + 10):
        assert soak.broken_by(seed, (*QUICK, "copies_play_as_one_alone")) == []


# What broke a law when it was found: buffers behind reduction units at half the line rate, and static stores that
# nobody waits for, cut off by the end of the layer.
@pytest.mark.parametrize("seed", [2172, 2189, 2307, 2347, 2417, 2733, 3019, 4167, 4339, 4917])
def test_what_was_found_is_mended(seed: int) -> None:
    assert soak.broken_by(seed, ("laws_of_physics",)) == []


def test_what_is_stored_is_of_these_properties() -> None:
    stored = json.loads((Path(__file__).parents[1] / "runs" / "reference" / "soak.json").read_text())
    assert stored["count"] == 10_000 and stored["broken"] == dict.fromkeys(soak.PROPERTIES, 0)


def test_what_is_broken_is_named_counted_and_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def on_odd_seeds(_: object, seed: int) -> None:
        """Fails on odd seeds."""
        assert seed % 2 == 0, "odd"

    monkeypatch.setattr(soak, "PROPERTIES", {"on_odd_seeds": on_odd_seeds})
    argv = ["--first", "4", "--count", "5", "--json", str(tmp_path / "found.json")]
    assert soak.main(argv) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "on_odd_seeds: Fails on odd seeds."
    assert [line.split(":")[0] for line in lines if line.startswith("seed ")] == [
        "seed 5 breaks on_odd_seeds",
        "seed 7 breaks on_odd_seeds",
    ]
    assert "on_odd_seeds: 5 examples, 2 broken" in lines
    stored = json.loads((tmp_path / "found.json").read_text())
    assert stored["broken"] == {"on_odd_seeds": 2}
    assert stored["found"] == [[5, "on_odd_seeds"], [7, "on_odd_seeds"]]
    assert soak.main(["--first", "4", "--count", "1"]) == 0
