"""Numbers of GPUs and experts, and the unit of time, hardly matter, and how much they do is told."""

import json

import numpy as np
import pytest

from dysharp_env.__main__ import main
from dysharp_env.config import preset_names
from dysharp_env.schedules import Problem, load_schedule
from dysharp_env.system import load_system
from dysharp_env.validation import symmetries as module
from dysharp_env.validation.symmetries import LAYERS, experts_renamed, half_as_fast, symmetries
from dysharp_env.workers import Workers


def test_renamed_experts_are_the_same_layer() -> None:
    workload = LAYERS[1].build().draw(3)
    other = experts_renamed(workload, 2)
    assert not np.array_equal(other.topk_ids, workload.topk_ids)
    where = [each.gpu_of_expert[each.topk_ids] for each in (workload, other)]
    assert np.array_equal(*where)
    assert np.array_equal(np.sort(other.demand.expert_tokens), np.sort(workload.demand.expert_tokens))
    assert workload.past_loads is not None and other.past_loads is not None
    for before, after in zip(workload.topk_ids.ravel(), other.topk_ids.ravel(), strict=True):
        assert workload.past_loads[before] == other.past_loads[after]
    assert np.array_equal(experts_renamed(workload, 0).topk_ids, workload.topk_ids)


@pytest.mark.parametrize("name", preset_names("systems"))
def test_half_the_speed_is_half_of_every_rate_and_twice_every_time(name: str) -> None:
    system = load_system(name)
    slow = half_as_fast(system)
    assert slow.link.gbps == system.link.gbps / 2 and slow.gpu.hbm_gbps == system.gpu.hbm_gbps / 2
    assert slow.gpu.bf16_tflops == system.gpu.bf16_tflops / 2 and slow.link.latency_ns == 2 * system.link.latency_ns
    assert slow.overheads.launch_us == 2 * system.overheads.launch_us
    for family, costs in system.gpu.families.items():
        assert slow.gpu.families[family].byte_ps == 2 * costs.byte_ps
        assert slow.gpu.families[family].payload_bytes == costs.payload_bytes
    assert slow.gpu.num_sms == system.gpu.num_sms and slow.gpu.l2_mb == system.gpu.l2_mb


def test_what_takes_twice_as_long_takes_twice_as_long() -> None:
    scenario = LAYERS[0].build()
    for name in ("deepep", "dysharp", "mega-moe"):
        times = [
            Problem.of(system, scenario.draw(1)).run(load_schedule(name)).engine.now_ps
            for system in (scenario.system, half_as_fast(scenario.system))
        ]
        assert times[1] / times[0] == pytest.approx(2, rel=1e-4)


def test_no_number_is_lucky() -> None:
    found = symmetries([load_schedule(name) for name in ("deepep", "dysharp", "comet")], 6, 0, Workers())
    assert [each.schedule for each in found] == ["deepep", "dysharp", "comet"]
    for each in found:
        assert each.luck_pct < 5 * each.luck_error_pct < 3
        assert 0 < each.gpus_sd_pct < each.gpus_range_pct < 6
        assert each.experts_sd_pct <= each.experts_range_pct < 6


def test_a_line_for_every_schedule_that_can_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LAYERS", LAYERS[:1])
    assert main(["validate", "--renamings", "1", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = [each["schedule"] for each in document["symmetries"]]
    assert names == [name for name in preset_names("schedules") if name in names]
    assert len(names) > 30 and all(each["gpus_sd_pct"] == 0 for each in document["symmetries"])
    assert main(["validate", "--renamings", "0"]) == 2
    assert "renamings=0 must be at least 1" in capsys.readouterr().err
