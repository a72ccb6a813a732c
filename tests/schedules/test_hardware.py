"""What schedules need and pay, read off their specs."""

from __future__ import annotations

import pytest

from dysharp_env.config import ConfigError, preset_names
from dysharp_env.schedules import Starter, load_schedule
from dysharp_env.schedules.hardware import FixedCosts, fixed_costs, hardware_needs, is_of_another_proposal
from dysharp_env.system import load_system
from dysharp_env.workload.layer import load_model

SYSTEM = load_system("dgx-h200")


def test_hardware_follows_from_primitives_the_hub_and_what_moves_weights() -> None:
    needs = {name: hardware_needs(load_schedule(name)) for name in preset_names("schedules")}
    assert needs["deepep"] == needs["nvls"] == needs["mega-moe"] == needs["dysharp-team"] == ["today"]
    assert needs["dysharp"] == needs["dysharp-push"] == needs["dysharp-basic"] == ["dynamic-multimem"]
    assert needs["moe-hub"] == ["hub"]
    assert needs["dysharp-open"] == ["today", "dynamic-multimem"]  # it has plans of either
    assert hardware_needs(load_schedule("deepep+ultraep:multicast")) == ["dynamic-multimem"]
    assert hardware_needs(load_schedule("deepep+ultraep:relay")) == ["today"]


@pytest.mark.parametrize("name", preset_names("schedules"))
def test_a_schedule_runs_on_the_hardware_that_it_is_said_to_need(name: str) -> None:
    schedule, layer = load_schedule(name), load_model("small")
    today = SYSTEM.with_hardware("today")
    plain = schedule.with_changes({"plans": ()})
    if hardware_needs(plain) == ["today"]:
        Starter(today, layer, plain)
    else:
        with pytest.raises(ConfigError, match=f"^schedule='{name}' needs "):
            Starter(today, layer, plain)
    Starter(SYSTEM, layer, plain)


def test_a_hub_saves_the_exchange_of_counts() -> None:
    with pytest.raises(ConfigError, match="hub=true needs no 'count_exchange' in pays.dispatch"):
        load_schedule("dysharp").with_changes({"hub": True})
    others = {name for name in preset_names("schedules") if is_of_another_proposal(load_schedule(name))}
    assert others == {"dysharp-push", "mega-moe-multimem", "moe-hub"}


def test_fixed_costs_are_what_a_schedule_names_at_the_prices_of_the_system() -> None:
    # deepep: launch 4.4 and three gaps of 1.5, an exchange of 7.5, two barriers of 2.3, three kernels of a gap each.
    found = fixed_costs(load_schedule("deepep"), SYSTEM)
    kernels = ("quantise", "layout", "activation")
    assert found == FixedCosts(pytest.approx(8.9), pytest.approx(7.5), pytest.approx(4.6), kernels, pytest.approx(4.5))
    assert found.total_us == pytest.approx(25.5)
    # mega-moe's last sum is in a kernel that runs already.
    assert fixed_costs(load_schedule("mega-moe"), SYSTEM).kernels_us == 1.5
    assert fixed_costs(load_schedule("moonep"), SYSTEM).exchanges_us == 7.5 + 36.0  # and a plan
