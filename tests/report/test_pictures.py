from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread

from dysharp_env.report import causes, colours, drawing, gantt, use
from dysharp_env.report.explained import Explanation, explain
from dysharp_env.report.moves import Moves
from dysharp_env.report.paid import Payer
from dysharp_env.report.records import picture_title
from dysharp_env.report.schedule import ScheduleTable
from dysharp_env.report.spans import spans_of
from dysharp_env.report.text import describe_state
from dysharp_env.schedules import Exposure, Problem, Starter, load_schedule, simulate
from dysharp_env.schedules.opponent import Contender
from dysharp_env.schedules.run import LayerRun
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.result import schedule_table
from dysharp_env.simulator.state import codes
from dysharp_env.system import load_system
from dysharp_env.system.spec import SystemSpec
from dysharp_env.workload import ScenarioSpec
from dysharp_env.workload.workload import Workload
from tests.simulator.copy_rules import copied_case


def scenario(**changes: int) -> tuple[SystemSpec, Workload]:
    options = {"system": "gh200-nvl32", "gpus": 4, "model": "small", "tokens": 96, "routing": "uniform", **changes}
    built = ScenarioSpec(**options).build()
    return built.system, built.draw(0)


def start(logging: bool = False) -> LayerRun:
    system, workload = scenario()
    exposure = Exposure(kinds=("dispatch",))
    return Starter(system, workload.layer, load_schedule("dysharp"), exposure=exposure, logging=logging).start(workload)


@pytest.fixture(scope="module")
def logged() -> LayerRun:
    return simulate(*scenario(), load_schedule("dysharp"), logging=True)


@pytest.fixture(scope="module")
def unlogged() -> LayerRun:
    return simulate(*scenario(), load_schedule("dysharp"))


def as_run(engine: Engine) -> SimpleNamespace:
    """Returns what pictures read of a run, of an engine that was made without one."""
    schedule, system = load_schedule("deepep"), load_system("dgx-h200")
    return SimpleNamespace(
        engine=engine, routed=engine.workload, schedule=schedule, system=system, lower_bound_ps=1_000_000
    )


def pixels_of(picture: np.ndarray, stage: str) -> int:
    colour = [int(colours.STAGES[stage][i : i + 2], 16) for i in (1, 3, 5)]
    return int((picture == colour).all(axis=-1).sum())


def test_picture_shows_every_stage(logged: LayerRun) -> None:
    picture = gantt.render(("a title", logged))
    assert picture.dtype == np.uint8 and picture.shape[1:] == (1200, 3) and 300 < picture.shape[0] < 900
    legend_patch = 200  # the legend has all colours whatever is drawn
    assert all(pixels_of(picture, stage) > 5 * legend_patch for stage in colours.STAGES)
    plain = gantt.render(("other", logged))
    assert plain.shape == picture.shape and (plain != picture).any()


@pytest.mark.parametrize("is_logged", [True, False])
def test_weights_of_copies_are_shown(is_logged: bool) -> None:
    engine = copied_case("unicast", [(0, 1), (2, 2)], [(3, 1)] * 4).engine(logging=is_logged).run()
    picture = gantt.render(("", as_run(engine)))
    colour = [int(colours.BESIDE["copying"][i : i + 2], 16) for i in (1, 3, 5)]
    shown = int((picture == colour).all(axis=-1).sum())
    # Without a log there is the span of the stage only.
    assert shown > (5000 if is_logged else 500)
    plain = gantt.render(("", as_run(copied_case("unicast", []).engine().run())))
    assert not (plain == colour).all(axis=-1).any()


def test_picture_needs_no_log_and_does_not_change_the_engine(unlogged: LayerRun) -> None:
    before = unlogged.engine.state.root.copy()
    picture = drawing.pixels_of(gantt.draw(("", unlogged), scale=2.0))
    assert picture.shape[1] == 2400 and all(pixels_of(picture, stage) > 4000 for stage in colours.STAGES)
    assert (before == unlogged.engine.state.root).all()


def test_picture_of_a_running_layer_keeps_its_size() -> None:
    run = start(logging=True)
    first = gantt.render(("", run))
    assert run.engine.advance() is not None
    second = gantt.render(("", run))
    assert first.shape == second.shape and pixels_of(first, "combine") < 400


def test_many_gpus_show_as_their_mean_and_a_few() -> None:
    engine = simulate(*scenario(gpus=16, tokens=8), load_schedule("deepep"), logging=True).engine
    names = [block.name for block in use.blocks(engine, 3, engine.now_ps / 1e6, 300)]
    assert names[0] == "all GPUs" and len(names) == 4 and f"GPU {use.last_gpu(engine)}" in names[1:]
    assert use.chosen_gpus(engine, 16) == list(range(16))


def test_pair_is_on_one_time_axis(logged: LayerRun) -> None:
    push = simulate(*scenario(), load_schedule("dysharp-push"), logging=True)
    pair = gantt.render(("push", push), ("dysharp", logged))
    assert pair.shape[1:] == (1200, 3)
    blue = (pair == [0x00, 0x72, 0xB2]).all(axis=-1)
    middle = pair.shape[0] // 2
    # Both start to dispatch after the same costs, so at the same place.
    assert blue[:middle].any(axis=0).argmax() == pytest.approx(blue[middle:-80].any(axis=0).argmax(), abs=4)


def test_png_holds_the_picture(logged: LayerRun) -> None:
    figure = gantt.draw(("", logged))
    decoded = imread(io.BytesIO(drawing.encoded(figure, "png")))
    assert (np.round(decoded[..., :3] * 255).astype(np.uint8) == drawing.pixels_of(figure)).all()


@pytest.mark.parametrize(("form", "begin"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_other_forms_hold_no_date(form: str, begin: bytes, unlogged: LayerRun) -> None:
    first, second = (drawing.encoded(gantt.draw(("a", unlogged), max_gpus=1), form) for _ in range(2))
    assert first == second and first.startswith(begin)


def test_titles_fit(unlogged: LayerRun) -> None:
    names = [(f"a-schedule-with-a-very-long-name-{number}", unlogged) for number in range(4)]
    one, four = gantt.draw(*names[:1], max_gpus=1), gantt.draw(*names)
    for figure in (one, four):
        title = figure.texts[0]
        assert "on small, 4 GPUs of gh200-nvl32, 96 tokens per GPU" in title.get_text().replace("\n", " ")
        assert title.get_window_extent().x1 <= figure.bbox.x1
    assert four.texts[0].get_fontsize() < one.texts[0].get_fontsize()
    title = picture_title(["a"] * 8, unlogged)
    assert title == "8 schedules on small, 4 GPUs of gh200-nvl32, 96 tokens per GPU"


def test_what_is_paid_is_named_and_in_its_place() -> None:
    run = simulate(*scenario(), load_schedule("deepep"), logging=True)
    costs, spans = run.engine.costs, Payer.of(run).spans()
    everyones = [each for each in spans if each.gpu == -1]
    assert everyones[0].start_ps == 0 and everyones[0].item.name == "launch"
    exchange = next(each for each in spans if each.item.name == "count_exchange")
    assert (exchange.item.short, exchange.end_ps - exchange.start_ps) == ("count exchange", costs.count_exchange_ps)
    barriers = [each for each in spans if each.item.name == "barrier"]
    assert [each.stage for each in barriers] == ["gemm1", "combine"]
    assert {each.end_ps - each.start_ps for each in barriers} == {costs.barrier_ps}
    stages = {stage: 1e6 * first_us for stage, (first_us, _) in spans_of(run).items()}
    for stage in ("dispatch", "gemm1", "combine"):
        # A stage begins as the last of what is paid before it is.
        assert max(each.end_ps for each in everyones if each.stage == stage) == pytest.approx(stages[stage], abs=1)
    assert {each.gpu for each in spans if each.stage == "gemm2"} == {0, 1, 2, 3}


def test_rows_find_in_l2_what_others_left_there() -> None:
    # One expert a GPU with several tiles: the first row of each GEMM reads the matrix from HBM, the others find it.
    system, workload = scenario(gpus=4, tokens=256)
    run = simulate(system.with_changes({"gpu.l2_mb": 4000}), workload, load_schedule("dysharp"), logging=True)
    state = run.engine.state
    read, found = use.row_hits(run.engine)
    weights, inputs = state.root[0]["gemms"]["weight_bytes"], state.root[0]["gemms"]["token_in_bytes"]
    started = state.tiles["rows"]["start_ps"] >= 0
    assert (read[started] == (weights + state.tiles["count"][:, None] * inputs)[started]).all()
    # With room for all, a matrix is read once, and what was written is found.
    experts = state.experts["number"][state.tiles["expert"]]
    for gemm in (0, 1):
        for expert in np.unique(experts[started[:, gemm]]):
            missed = (read - found)[(experts == expert) & started[:, gemm], gemm]
            assert missed.max() == weights[gemm] and (missed > 0).sum() == 1
    hbm = run.engine.state.log[: int(state.root["log_size"][0])]
    hbm = hbm[(hbm["resource"] == codes.LOG_HBM) & (hbm["purpose"] == codes.HBM_WEIGHTS)]
    assert (read - found).sum() == hbm["amount"].sum()


def test_fractions_by_hand() -> None:
    # GPU 1 has [0, 10) in full and [5, 15) by half: 4 of the first 4, 6 + 2.5 of the next 6, 2.5 of the last 10.
    edges = np.array([0.0, 4.0, 10.0, 20.0])
    found = use.fractions(2, np.array([1, 1]), np.array([5, 0]), np.array([15, 10]), np.array([0.5, 1.0]), edges)
    assert found == pytest.approx(np.array([[0.0, 0.0, 0.0], [1.0, 8.5 / 6, 0.25]]))


def test_strips_hold_the_time_that_links_are_busy(logged: LayerRun) -> None:
    engine = logged.engine
    (uplink, _, downlink) = use.logged_use(engine, np.linspace(0, engine.now_ps, 301))
    rows = engine.state.log[: int(engine.state.root["log_size"][0])]
    for (_, parts), resource in ((uplink, 0), (downlink, 1)):
        for gpu in range(4):
            mine = rows[(rows["resource"] == resource) & (rows["gpu"] == gpu)]
            busy = (mine["end_ps"] - mine["start_ps"]).sum() / engine.now_ps
            assert sum(used[gpu].mean() for used in parts.values()) == pytest.approx(busy, rel=1e-6)


def test_csv_is_the_schedule_table(unlogged: LayerRun, tmp_path: Path) -> None:
    ScheduleTable.of(unlogged.engine).to_csv(tmp_path / "s.csv")
    lines = (tmp_path / "s.csv").read_text().splitlines()
    table = schedule_table(unlogged.engine)
    assert lines[0] == "item,stage,gpu,resource,tokens,expert,start_us,end_us"
    assert len(lines) == len(table) + 1
    assert lines[1] == ",".join(str(value) for value in table[0])


def test_text_of_a_layer_before_during_and_after() -> None:
    run = start()
    before = describe_state(run).splitlines()
    assert before[0] == "t = 0.0 us (0.00 x lower bound), 0/384 tokens combined" and len(before) == 6
    decision = run.engine.advance()
    legal = int(decision.mask.sum())
    assert describe_state(run).splitlines()[0].endswith(f"GPU {decision.gpu} decides: dispatch, {legal} legal answers")
    while not run.engine.done:
        run.engine.decide(0)
        run.engine.advance()
    after = describe_state(run).splitlines()
    assert after[0].endswith("384/384 tokens combined, done")
    assert all(line.count("100%") == 5 for line in after[2:])


def test_groups_that_change_size_are_shown() -> None:
    system, workload = scenario()
    exposure = Exposure(("split",), splits=((8, 8), (1, 1), (60, 60)), split_moments=2)
    starter = Starter(system, workload.layer, load_schedule("dysharp"), exposure=exposure, logging=True)
    run = starter.start(workload)
    run.engine.advance()
    assert describe_state(run).splitlines()[0].endswith("all GPUs decides: split, 3 legal answers")
    deciding = set()
    while not run.engine.done:
        run.engine.decide(len(deciding) % 3)
        decision = run.engine.advance()
        headline, _, *lines = describe_state(run).splitlines()
        assert all(0 <= int(line.split()[-1]) <= 132 for line in lines)
        if decision is not None:
            assert headline.endswith(f"GPU {decision.gpu} decides: split, 3 legal answers")
            deciding.add(decision.gpu)
    assert deciding == {0, 1, 2, 3}
    picture = gantt.render(("", run))
    assert all(pixels_of(picture, stage) > 1000 for stage in colours.STAGES)


def test_text_of_many_gpus_is_cut() -> None:
    run = simulate(*scenario(gpus=32, tokens=4), load_schedule("deepep"))
    assert describe_state(run).endswith("... and 16 more GPUs")


def explained(*schedules: str) -> list[Explanation]:
    system, workload = scenario()
    problem = Problem.of(system, workload)
    return [explain(problem, Contender.of_schedule(load_schedule(name))) for name in schedules]


def test_causes_are_drawn_one_panel_each() -> None:
    one, two = explained("deepep"), explained("deepep", "dysharp")
    first, both = (drawing.pixels_of(causes.draw_causes(*each)) for each in (one, two))
    assert first.dtype == np.uint8 and first.shape[1:] == both.shape[1:] == (1200, 3)
    assert 1.5 * len(first) < len(both) < 2.2 * len(first)
    assert all(pixels_of(first, stage) > 500 for stage in colours.STAGES)


def test_a_gpu_shows_all_that_it_has(logged: LayerRun) -> None:
    engine = logged.engine
    block = use.everything_of(engine, 1, engine.now_ps / 1e6, 300)
    names = [name for name, _ in block.strips]
    assert names == ["dispatch SMs", "uplink", "GEMM SMs", "HBM", "L2 hits", "downlink", "combine SMs"]
    sms = dict(block.strips)["GEMM SMs"]
    assert list(sms) == ["gemm1", "gemm2", "stalled"]
    assert all(0 <= used.min() < used.max() <= 1 for _, stages in block.strips for used in stages.values())
    # What computes and what waits for HBM are together what is busy.
    (_, (_, busy), _) = use.logged_use(engine, np.linspace(0, engine.now_ps, 301))
    assert sum(sms.values()) == pytest.approx(sum(used[1] for used in busy.values()))


@pytest.mark.parametrize("schedule", ["deepep", "dysharp", "dysharp-push", "dysharp-team", "mega-moe", "nvls"])
def test_groups_have_vectors_under_way_once_they_may(schedule: str) -> None:
    # Teams are of 8, so that a token has two stores.
    engine = simulate(*scenario(gpus=16, tokens=24), load_schedule(schedule), logging=True).engine
    root, moves = engine.state.root[0], Moves(engine)
    for trips, stage in ((moves.dispatched(), "dispatch"), (moves.combined(), "combine")):
        assert len(trips.gpu) and (trips.taken_ps < trips.arrived_ps).all()
        assert trips.taken_ps.min() >= root[f"{stage}_first"] and trips.arrived_ps.max() <= root[f"{stage}_last"]


def test_hbm_is_shown_by_what_it_is_used_for(logged: LayerRun) -> None:
    engine = logged.engine
    rows = engine.state.log[: int(engine.state.root["log_size"][0])]
    rows = rows[rows["resource"] == codes.LOG_HBM]
    hbm = dict(use.everything_of(engine, 2, engine.now_ps / 1e6, 300).strips)["HBM"]
    assert tuple(hbm) == codes.HBM_PURPOSES and hbm["weights"].max() > 0.5
    for purpose, used in enumerate(hbm.values()):
        mine = rows[(rows["gpu"] == 2) & (rows["purpose"] == purpose)]
        busy_ps = (np.minimum(mine["end_ps"], engine.now_ps) - np.minimum(mine["start_ps"], engine.now_ps)).sum()
        assert used.mean() == pytest.approx(busy_ps / engine.now_ps, rel=1e-6)


def test_thread_blocks_lose_time_to_communication_where_they_do_it() -> None:
    system, workload = scenario()
    # HBM serves at once, so what a block takes beyond its own time is communication.
    system = system.with_changes({"gpu.hbm_gbps": 1e9, "gpu.cold_exposure": 0, "gpu.in_gemm_share": 1})
    for in_gemm in (False, True):
        schedule = load_schedule("flashdmoe").with_changes({"sms.in_gemm": in_gemm})
        engine = simulate(system, workload, schedule, logging=True).engine
        rows, lost = Moves(engine).blocks
        own_ps = rows["end_ps"] - rows["start_ps"] - lost.communication_ps
        assert lost.communication_ps.any() == in_gemm and lost.hbm_ps.max() < 1000
        assert (lost.communication_ps <= own_ps).all()
        strip = dict(use.everything_of(engine, 1, engine.now_ps / 1e6, 300).strips)["GEMM SMs"]
        assert ("communication" in strip) == in_gemm
        explanation = explain(Problem.of(system, workload), Contender.of_schedule(schedule))
        assert len(drawing.pixels_of(causes.draw_causes(explanation)))
