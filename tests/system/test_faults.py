"""Faults by name and by settings: presets, files, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dysharp_env.config import ConfigError, config_root, preset_names
from dysharp_env.report.catalogue import faults
from dysharp_env.system import FaultSpec, load_system
from dysharp_env.system.faults import read_faults


def changed(settings: dict[str, object]) -> dict[str, object]:
    """Returns the settings that are no default."""
    return {key: value for key, value in settings.items() if value != FaultSpec.model_fields[key].default}


def test_presets_are_one_fault_each_and_say_that_they_were_set() -> None:
    names = preset_names("faults")
    found = {name: changed(read_faults(name)) for name in names}
    assert all(len(settings) == 1 for settings in found.values())
    # Together they are every fault there is.
    assert {key for settings in found.values() for key in settings} == {*FaultSpec.model_fields}
    for name in names:
        assert ": set" in (config_root() / "faults" / f"{name}.yaml").read_text(encoding="utf-8")
    assert [row["name"] for row in faults()] == names
    assert {row["name"]: row["settings"] for row in faults()}["slow-link"] == "slow_link=2"


def test_settings_files_and_none_are_read(tmp_path: Path) -> None:
    assert changed(read_faults("slow_link=2, late_us=0.5")) == {"slow_link": 2.0, "late_us": 0.5}
    assert read_faults("none") == FaultSpec().model_dump()
    path = tmp_path / "mine.yaml"
    path.write_text("replay_every: 7\ntaken_slots: 0.5\n")
    assert changed(read_faults(str(path))) == {"replay_every": 7, "taken_slots": 0.5}
    machine = tmp_path / "machine.yaml"
    machine.write_text((config_root() / "systems" / "dgx-h100.yaml").read_text() + "\nfaults: {slow_plane: 3}\n")
    assert load_system(str(machine)).faults.slow_plane == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("slow-lnk", r"faults='slow-lnk' is unknown; choose from \['none', .*did you mean 'slow-link'"),
        ("slow_lnk=2", r"'slow_lnk' is no fault; choose from \['slow_link', .*did you mean 'slow_link'"),
        ("slow_link=fast", "slow_link='fast' must be a number"),
        ("slow_link=true", "slow_link='true' must be a number"),
        ("slow_link=", "slow_link='' must be a number"),
        ("slow_link=!!python/name:os", "must be a number"),
        ("slow_link=0.5", "slow_link=0.5: Input should be greater than or equal to 1"),
        ("taken_slots=1", "taken_slots=1: Input should be less than 1"),
        ("late_us=1,late_us=2", "names 'late_us' twice"),
        ("nowhere.yaml", "fault file 'nowhere.yaml' does not exist"),
    ],
)
def test_mistakes_are_one_line(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read_faults(given)
    assert "\n" not in str(error.value)
