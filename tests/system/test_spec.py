from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from agents.training.spec import TrainSpec
from dysharp_env.config import ConfigError, config_root, flat_keys, preset_names
from dysharp_env.simulator.costs import Costs
from dysharp_env.system import SystemSpec, load_system
from dysharp_env.system.primitives import FAMILIES
from dysharp_env.workload import load_model

PUBLISHED = {
    # name: (GPUs, planes, GB/s per direction, HBM GB/s)
    "dgx-h100": (8, 4, 450, 3350),
    "dgx-h200": (8, 4, 450, 4800),
    "dgx-h800": (8, 4, 200, 3350),
    "dgx-b200": (8, 2, 900, 8000),
    "gh200-nvl32": (32, 9, 450, 4800),
    "gb200-nvl72": (72, 18, 900, 8000),
    "dgx-h20": (8, 4, 450, 4000),
    "dgx-b300": (8, 2, 900, 7750),
    "gb300-nvl72": (72, 18, 900, 8000),
    "vera-rubin-nvl72": (72, 36, 1800, 22000),
    "hypothetical-nvl256": (256, 18, 900, 8000),
}


@pytest.fixture
def own_system(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    shutil.copy(config_root() / "systems" / "dgx-h100.yaml", path)
    return path


def edit(path: Path, old: str, new: str) -> str:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return str(path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_has_the_published_numbers(name: str) -> None:
    system = load_system(name)
    assert (system.num_gpus, system.link.planes, system.link.gbps, system.gpu.hbm_gbps) == PUBLISHED[name]
    assert system.link.latency_ps == 250_000
    assert system.switch.dispatch_primitives == ("unicast", "multicast", "broadcast", "team", "pull")
    assert system.switch.combine_primitives == ("unicast", "pull_reduce", "push_reduce", "reduce_scatter", "pull")
    # The reduction cycle is one 16 B flit on one of the 18 links; an H800 has 8, a Vera Rubin 36.
    links = {"dgx-h800": 8, "vera-rubin-nvl72": 36}.get(name, 18)
    assert system.switch.reduction_cycle_ps == system.link.flit_bytes * 1000 * links / system.link.gbps


@pytest.mark.parametrize("name", preset_names("systems"))
def test_a_preset_is_named_as_its_file_and_every_value_is_annotated(name: str) -> None:
    assert load_system(name).name == name
    lines = (config_root() / "systems" / f"{name}.yaml").read_text().splitlines()
    explained_by_block = {"payload_bytes", "header_flits", "ack_flits", "request_flits"}
    explained_by_block |= {"dispatch_primitives", "combine_primitives", "multimem_flits"}
    explained_by_block |= {"families", *FAMILIES, "efficiency", "efficiency_per_doubling"}
    # What is deeper belongs to a family, which a comment above explains.
    bare = {line.split(":")[0].strip() for line in lines if re.match("(  |    )[^ #]", line) and "#" not in line}
    assert bare <= explained_by_block


def test_derived_rates_of_h200() -> None:
    gpu = load_system("gh200-nvl32").gpu
    # 50 MiB of which every line is held twice.
    assert gpu.l2_bytes == 26_214_400
    assert gpu.gemm_tflops("fp8") == pytest.approx(1454.565)
    assert gpu.gemm_tflops("bf16") == pytest.approx(726.915)


@pytest.mark.parametrize(("name", "clocks", "rows"), [("dgx-h200", 16, 64), ("dgx-h20", 16, 64), ("dgx-b200", 32, 128)])
def test_operands_are_read_from_shared_memory_at_128_bytes_a_clock(name: str, clocks: int, rows: int) -> None:
    """An instruction reads ``rows`` x 32 B of weights, in the time of the arithmetic of the operand's tokens."""
    gpu, clock_hz = load_system(name).gpu, 1.85e9
    assert rows * 32 / 128 == clocks
    multiply_adds = gpu.fp8_tflops * 1e12 / 2 / gpu.num_sms / clock_hz
    assert clocks * multiply_adds / (rows * 32) == pytest.approx(gpu.operand_tokens, rel=0.06)


def test_a_block_s_time_is_that_of_its_tokens_or_of_reading_both_operands() -> None:
    costs = Costs.of(load_system("dgx-h200"), load_model("deepseek-v3"))
    token_ps = costs.granule_ps[0] / 16
    in_tokens = [
        (costs.block_ps(1, tokens) - costs.block_overhead_ps) / token_ps for tokens in (1, 16, 17, 48, 64, 100)
    ]
    # 16 tokens: 32 for the weights and 8 for the tokens; from 64 on arithmetic binds.
    assert in_tokens == pytest.approx([40, 40, 48, 56, 64, 112], rel=1e-4)


def test_fewer_gpus_keep_their_links() -> None:
    system = load_system("gh200-nvl32", num_gpus=4)
    assert (system.num_gpus, system.link) == (4, load_system("gh200-nvl32").link)


@pytest.mark.parametrize("num_gpus", [-1, 0, 1, 9])
def test_number_of_gpus_out_of_range(num_gpus: int) -> None:
    with pytest.raises(ConfigError) as error:
        load_system("dgx-h100", num_gpus=num_gpus)
    assert str(error.value) == f"gpus={num_gpus}: system 'dgx-h100' allows 2 to 8"


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^system='dgx-h10' is unknown; .*\(did you mean 'dgx-h100'\?\)$"):
        load_system("dgx-h10")


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"^system file 'nowhere\.yaml' does not exist$"):
        load_system("nowhere.yaml")


def test_own_file_loads(own_system: Path) -> None:
    assert load_system(edit(own_system, "num_gpus: 8", "num_gpus: 16")).num_gpus == 16


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "payload_bytes: 128",
            "payload_byte: 128",
            "unknown key 'link.payload_byte' (did you mean 'link.payload_bytes'?)",
        ),
        ("num_sms: 132", "num_sms: -132", "gpu.num_sms=-132: "),
        ("hbm_gbps: 3350", "hbm_gbps: 0", "gpu.hbm_gbps=0: "),
        ("hbm_gbps: 3350", "hbm_gbps: .inf", "gpu.hbm_gbps=inf: "),
        ("hbm_gbps: 3350", "hbm_gbps: .nan", "gpu.hbm_gbps=nan: "),
        ("gemm_efficiency: 0.735", "gemm_efficiency: 1.5", "gpu.gemm_efficiency=1.5: "),
        ("latency_ns: 250 ", "latency_ns: -1 ", "link.latency_ns"),
        ("num_gpus: 8", "num_gpus: 1", "num_gpus=1: "),
        ("queueing: voq", "queueing: fifo", "queueing='fifo': Input should be 'output_queued', 'voq' or 'input_fifo'"),
        (
            "[unicast, multicast, broadcast, team, pull]",
            "[]",
            "dispatch_primitives=[] must name at least one primitive, each once",
        ),
        (
            "[unicast, multicast, broadcast, team, pull]",
            "[unicast, unicast]",
            "dispatch_primitives=['unicast', 'unicast'] must name at least one primitive, each once",
        ),
        ("  queueing: voq", "  team_gpus: 17\n  queueing: voq", "switch.team_gpus=17: "),
        ("  queueing: voq", "  team_gpus: 1\n  queueing: voq", "switch.team_gpus=1: "),
        ("payload_bytes: 128", "payload_bytes: 100", "payload_bytes=100 must be a multiple of flit_bytes=16"),
        ("target_bytes: 2", "target_bytes: 32", "target_bytes=32 must be at most flit_bytes=16"),
        ("vc_depth_flits: 256", "vc_depth_flits: 8", "switch.vc_depth_flits=8 must hold one packet of 23 flits"),
        (
            "reduction_buffer_bytes: 65536",
            "reduction_buffer_bytes: 64",
            "switch.reduction_buffer_bytes=64 must hold one packet of payload_bytes=256",
        ),
        ("    warp_load:", "    warp_lode:", "gpu.families.warp_lode"),
        (
            "    warp_load: {copy_ns: 0",
            "    warp_load: {copy_n: 0",
            "unknown key 'gpu.families.warp_load.copy_n'",
        ),
        ("    warp_load: {copy_ns: 0", "    warp_load: {copy_ns: -1", "gpu.families.warp_load.copy_ns=-1: "),
        ("payload_bytes: 256,", "payload_bytes: 250,", "gpu.families.bulk.payload_bytes=250 must be a multiple of"),
        ("in_gemm_share: 1.0", "in_gemm_share: 2", "gpu.in_gemm_share=2: "),
        ("  efficiency: 1.0", "  efficiency: 1.1", "link.efficiency=1.1: "),
        ("multimem_flits: 1", "multimem_flits: -1", "link.multimem_flits=-1: "),
        ("role_change_us: 1.0", "role_change_us: -1", "overheads.role_change_us=-1: "),
        ("  barrier_us: 2.3", "  # barrier_us: 2.3", "key 'overheads.barrier_us' is missing"),
    ],
)
def test_mistake_in_own_file_is_one_line(own_system: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_system(edit(own_system, old, new))
    assert message in str(error.value)
    assert str(own_system) in str(error.value)
    assert "\n" not in str(error.value)


def test_costs_and_protocol_flits_may_be_zero() -> None:
    zeros = {
        "link.latency_ns": 0,
        "link.header_flits": 0,
        "link.ack_flits": 0,
        "link.request_flits": 0,
        "gpu.multimem_queue_entries": 0,
        "gpu.memory_latency_ns": 0,
        "switch.reduction_cycle_ps": 0,
        "overheads.launch_us": 0,
        "overheads.barrier_us": 0,
        "overheads.count_exchange_us": 0,
    }
    system = load_system("dgx-h100").with_changes(zeros)
    assert system.link.latency_ps == 0
    assert system.overheads.barrier_us == 0


def test_latency_keeps_fractions_of_a_nanosecond_and_whole_ones_stay_whole() -> None:
    system = load_system("dgx-h100")
    assert isinstance(system.link.latency_ns, int)
    assert system.with_changes({"link.latency_ns": 936.25}).link.latency_ps == 936_250


def test_settings_of_a_family_are_changed_one_by_one() -> None:
    system = load_system("dgx-h100")
    changed = system.with_changes({"gpu.families.warp_queue.byte_ps": 7})
    assert changed.gpu.families["warp_queue"].byte_ps == 7
    assert changed.gpu.families["warp_queue"].token_ns == system.gpu.families["warp_queue"].token_ns
    assert changed.gpu.families["bulk"] == system.gpu.families["bulk"]
    assert hash(changed) != hash(system) == hash(load_system("dgx-h100"))
    with pytest.raises(ConfigError, match=r"^'gpu.families.warp_que.byte_ps' is not a setting"):
        system.with_changes({"gpu.families.warp_que.byte_ps": 7})


def test_what_is_none_is_given_whole() -> None:
    with pytest.raises(
        ConfigError, match=r"^'imitation.layers' .* none; give all of it, such as imitation=\{layers: 8\}$"
    ):
        TrainSpec().with_changes({"imitation.layers": 8})


def test_links_and_barriers_follow_the_number_of_gpus() -> None:
    changes = {
        "link.efficiency": 0.9,
        "link.efficiency_per_doubling": 0.05,
        "overheads.barrier_us": 4,
        "overheads.barrier_per_doubling_us": 0.5,
    }
    # Two halvings, but a round trip at least.
    steep = load_system("gh200-nvl32", 2).with_changes({**changes, "overheads.barrier_per_doubling_us": 3})
    assert steep.overhead_us("barrier") == 1
    for num_gpus, gbps, barrier_us in ((2, 405, 3), (8, 405, 4), (32, 360, 5)):
        system = load_system("gh200-nvl32", num_gpus).with_changes(changes)
        assert system.link_bytes_per_s == gbps * 10**9 and system.overhead_us("barrier") == barrier_us
        assert system.overhead_us("launch") == system.overheads.launch_us


def test_specs_are_frozen_and_survive_a_round_trip() -> None:
    system = load_system("gb200-nvl72")
    with pytest.raises(ValidationError):
        system.num_gpus = 4  # type: ignore[misc]
    assert SystemSpec.model_validate_json(system.model_dump_json()) == system


def test_a_request_asks_for_at_least_one_packet() -> None:
    system = load_system("dgx-h100")
    with pytest.raises(ConfigError, match="multimem_request_bytes=64 must be 0 or at least payload_bytes=128"):
        system.with_changes({"link.multimem_request_bytes": 64})
    wide = system.with_changes({"link.multimem_request_bytes": 512})
    with pytest.raises(ConfigError, match="link.multimem_request_bytes=512 asks for several packets at once"):
        Costs.of(wide, load_model("small"), resolution="packet")


def test_every_setting_that_is_listed_can_be_set() -> None:
    system = load_system("dgx-h200")
    keys, settings = flat_keys(system), system.model_dump()
    assert len(set(keys)) == len(keys) and {"gpu.families.bulk.byte_ps", "link.gbps", "slow_gpu"} <= set(keys)
    for key in keys:
        value = settings
        for name in key.split("."):
            value = value[name]
        assert system.with_changes({key: value}) == system
    # Without a system there is no telling which families it has.
    assert "gpu.families" in flat_keys(SystemSpec) and not [k for k in flat_keys(SystemSpec) if "byte_ps" in k]


@pytest.mark.parametrize("name", preset_names("systems"))
def test_hardware_of_today_has_what_can_be_bought(name: str) -> None:
    system = load_system(name)
    assert system.with_hardware("dynamic-multimem") is system
    today = system.with_hardware("today")
    assert today.switch.dispatch_primitives == ("unicast", "broadcast", "team", "pull")
    assert today.switch.combine_primitives == ("unicast", "reduce_scatter", "pull")
    same = {key: list(getattr(system.switch, key)) for key in ("dispatch_primitives", "combine_primitives")}
    assert not today.gpu.hub
    assert today.with_changes({"gpu.hub": True, **{f"switch.{key}": each for key, each in same.items()}}) == system


def test_hardware_of_today_must_be_able_to_send_and_sum() -> None:
    alone = load_system("dgx-h100").with_changes({"switch.dispatch_primitives": ["multicast"]})
    with pytest.raises(ConfigError, match=re.escape("dispatch_primitives=[] must name at least one primitive")):
        alone.with_hardware("today")
