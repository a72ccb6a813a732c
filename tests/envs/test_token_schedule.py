"""The environment's contract: spaces, masks, seeding, reward, info, rendering, and what a masked action does."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

import dysharp_env
from dysharp_env.config import ConfigError
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.schedules import load_schedule
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, ENGINE_KINDS, FEATURES

ENV_ID = "DySHARP/TokenSchedule-v2"
TINY = {"model": "small", "tokens": 24, "routing": "uniform", "gpus": 4}


def make(**settings: Any) -> TokenScheduleEnv:
    return TokenScheduleEnv(**{**TINY, **settings})


def play(
    env: TokenScheduleEnv, rng: np.random.Generator, **reset: int
) -> tuple[list[int], float, list[dict[str, Any]]]:
    """Plays one episode with uniform legal choices; returns actions, return and every info."""
    _, info = env.reset(**reset)
    actions, total, infos, done = [], 0.0, [info], False
    while not done:
        action = int(rng.choice(np.flatnonzero(env.action_masks())))
        observation, reward, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(observation)
        actions.append(action)
        infos.append(info)
        total += reward
        done = terminated or truncated
    return actions, total, infos


@pytest.mark.parametrize("name", [ENV_ID, f"dysharp_env:{ENV_ID}"])
def test_it_is_made_by_name_with_the_documented_arguments(name: str) -> None:
    assert dysharp_env.__version__
    env = gymnasium.make(name, system="dgx-h100", model="small", top_k=8, tokens=64, routing="dsv2-lite")
    _, info = env.reset(seed=0)
    assert info["action_mask"].dtype == np.int8
    assert env.get_wrapper_attr("action_masks")().dtype == bool


@pytest.mark.parametrize("settings", [{}, {"exposed": ("split", "gemm")}, {"invalid_penalty": 0.01}])
def test_checkers_pass_without_a_warning(settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # They take actions without a look at the mask.
        warnings.filterwarnings("ignore", message="a masked action was taken")
        # The checker wants the spec that only ``gymnasium.make`` gives; it then tries every render mode too.
        gymnasium_check(gymnasium.make(ENV_ID, **TINY, **settings).unwrapped)
        sb3_check(make(**settings))


def test_a_seed_is_of_random_choices_too() -> None:
    def sampled(seed: int) -> list[int]:
        env = make()
        _, info = env.reset(seed=seed)
        taken, ended = [], False
        while not ended:
            taken.append(int(env.action_space.sample(info["action_mask"])))
            _, _, ended, _, info = env.step(taken[-1])
        return taken

    first = sampled(0)
    assert first == sampled(0) != sampled(1)
    env = make()
    env.reset(seed=0)
    drawn = env.action_space.sample()
    then = [env.action_space.sample() for _ in range(8)]
    env.reset(seed=0)
    assert env.action_space.sample() == drawn
    env.reset()  # without a seed the stream goes on
    assert [env.action_space.sample() for _ in range(8)] == then


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_renderers_show_the_layer(mode: str) -> None:
    env = make(render_mode=mode)
    play(env, np.random.default_rng(0), seed=1)
    picture = env.render()
    if mode == "ansi":
        assert "GPU" in picture
    else:
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 3


def test_the_version_before_names_this_one() -> None:
    with pytest.raises(gymnasium.error.DeprecatedEnv, match="Please use `DySHARP/TokenSchedule-v2` instead"):
        gymnasium.make("DySHARP/TokenSchedule-v0")


def test_same_seed_and_actions_give_the_same_bytes() -> None:
    runs = []
    for _ in range(2):
        env = make()
        actions, total, infos = play(env, np.random.default_rng(3), seed=11)
        runs.append((actions, total, [info["time_us"] for info in infos], tuple(env.schedule())))
    assert runs[0] == runs[1]


def test_different_seeds_draw_different_routing() -> None:
    env = make()
    env.reset(seed=1)
    first = env.run.engine.workload.topk_ids
    env.reset(seed=2)
    assert not np.array_equal(first, env.run.engine.workload.topk_ids)
    env.reset(seed=1)
    assert np.array_equal(first, env.run.engine.workload.topk_ids)


def test_options_choose_the_workload_and_others_are_refused() -> None:
    env = make()
    env.reset(options={"workload_seed": 7})
    chosen = env.run.engine.workload
    env.reset(options={"workload": chosen})
    assert env.run.engine.workload is chosen
    with pytest.raises(ValueError, match=re.escape("reset option='workload_sed' is unknown")):
        env.reset(options={"workload_sed": 7})
    other = make(gpus=2).scenario.draw(0)
    with pytest.raises(ValueError, match="the workload has 2 GPUs, the system 4"):
        env.reset(options={"workload": other})


def test_workload_seeds_stay_inside_their_range() -> None:
    env = make(seeds=(100, 2))
    names = set()
    for seed in range(8):
        env.reset(seed=seed)
        names.add(env.run.engine.workload.name.split("seed=")[1])
    assert names == {"100", "101"}


def test_return_is_minus_makespan_over_lower_bound() -> None:
    _, total, infos = play(make(), np.random.default_rng(0), seed=5)
    last = infos[-1]
    assert total == pytest.approx(-last["ratio"], abs=1e-9)
    assert last["ratio"] == pytest.approx(last["makespan_us"] / last["lower_bound_us"])
    assert last["ratio"] >= 1.0


def test_info_has_the_same_keys_at_every_step_and_metrics_only_at_the_end() -> None:
    _, _, infos = play(make(), np.random.default_rng(0), seed=5)
    assert all(info.keys() == infos[0].keys() for info in infos)
    assert all(info["makespan_us"] == 0.0 for info in infos[:-1])
    last = infos[-1]
    for name in (
        "makespan_us",
        "wire_bytes_up",
        "wire_bytes_down",
        "payload_bytes",
        "uplink_utilisation",
        "sm_utilisation",
    ):
        assert last[name] > 0
    assert last["kind"] == -1 and last["asked"] == len(infos) - 1


def test_decisions_are_counted_whoever_takes_them_and_asked_are_the_agent_s() -> None:
    env = make(exposed=("gemm",))
    _, _, infos = play(env, np.random.default_rng(0), seed=5)
    last = infos[-1]
    assert last["asked"] == len(infos) - 1 < last["decisions"] == env.run.result().decisions


@pytest.fixture
def fetching_ahead(tmp_path: Path) -> str:
    """Returns the path of a schedule that fetches weights ahead."""
    path = tmp_path / "ahead.yaml"
    schedule = load_schedule("dysharp").with_changes({"name": "ahead", "aliases": (), "prefetch": "ahead"})
    path.write_text(schedule.to_yaml())
    return str(path)


@pytest.mark.parametrize("kind", ENGINE_KINDS)
def test_only_exposed_kinds_are_asked(kind: str, fetching_ahead: str) -> None:
    _, _, infos = play(make(exposed=(kind,), schedule=fetching_ahead), np.random.default_rng(0), seed=5)
    assert {info["kind"] for info in infos[:-1]} == {DECISION_KINDS.index(kind)}


def test_weights_can_only_be_asked_for_where_they_are_fetched_ahead() -> None:
    with pytest.raises(ConfigError, match="exposed='prefetch' does not fit schedule='dysharp', whose prefetch is"):
        make(exposed=("prefetch",))


def test_mask_is_one_and_every_decision_has_at_least_two_legal_answers() -> None:
    env = make()
    _, info = env.reset(seed=0)
    rng = np.random.default_rng(0)
    done = False
    while not done:
        mask = env.action_masks()
        assert np.array_equal(mask, info["action_mask"].astype(bool))
        assert mask.sum() >= 2
        _, _, terminated, truncated, info = env.step(int(rng.choice(np.flatnonzero(mask))))
        done = terminated or truncated


def test_a_masked_action_can_raise() -> None:
    env = make(invalid_action="raise")
    _, info = env.reset(seed=0)
    masked = int(np.flatnonzero(info["action_mask"] == 0)[0])
    with pytest.raises(ValueError, match=rf"action {masked} is masked; legal actions are \["):
        env.step(masked)
    assert env.step(0)[4]["invalid_actions"] == 0


@pytest.mark.parametrize("action", [32, -1, 10**6, 1.7, "0"])
def test_actions_outside_the_space_raise(action: Any) -> None:
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="is not in Discrete"):
        env.step(action)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workload": "x"}, "reset option workload='x' must be a Workload"),
        ({"workload_seed": -1}, "reset option workload_seed=-1 must be a whole number that is not negative"),
        ({"workload_seed": 1.7}, "reset option workload_seed=1.7 must be a whole number"),
        ({"workload_seed": None}, "reset option workload_seed=None must be a whole number"),
    ],
)
def test_bad_reset_options_give_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make().reset(options=options)


def test_a_suite_is_drawn_from_entry_by_entry_and_seed_by_seed() -> None:
    env = TokenScheduleEnv(suite="smoke")
    drawn = {}
    for episode in range(24):
        env.reset(seed=1 if episode == 0 else None)
        drawn.setdefault(env.scenario.spec.routing, set()).add(env.run.engine.workload.name)
    # Both entries, both seeds of each, and no other.
    assert {routing: len(names) for routing, names in drawn.items()} == {"uniform": 2, "dsv2-lite": 2}


def test_an_entry_of_a_suite_and_a_workload_of_it_can_be_chosen() -> None:
    env = TokenScheduleEnv(suite="smoke")
    env.reset(options={"entry": 1, "workload_seed": 77})
    assert env.scenario.system.num_gpus == 4
    workload = env.run.engine.workload
    other = TokenScheduleEnv(model="olmoe", gpus=4, tokens=24, routing="dsv2-lite")
    other.reset(options={"workload_seed": 77})
    assert np.array_equal(workload.topk_ids, other.run.engine.workload.topk_ids)
    env.reset(options={"entry": 1, "workload": other.run.engine.workload})
    assert env.run.engine.workload is other.run.engine.workload
    for options, message in (
        ({"entry": 2}, "reset option entry=2 must be a whole number from 0 to 1"),
        ({"workload": workload}, "reset option workload needs entry, which of the suite's 2 entries it is of"),
        ({"entry": 0, "workload": workload}, "the workload has 4 GPUs, the system 8"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            env.reset(options=options)
    with pytest.raises(ValueError, match=re.escape("suite='smok' is unknown")):
        TokenScheduleEnv(suite="smok")


def test_the_context_says_what_binds() -> None:
    shares = {}
    for scale in (0.001, 1000.0):
        env = make(compute_scale=scale, tokens=1024)
        observation, _ = env.reset(seed=0)
        shares[scale] = dict(zip(CONTEXT, observation["context"], strict=True))
    assert shares[0.001]["link_share"] > 0.5 > 0.01 > max(shares[0.001]["gemm_share"], shares[0.001]["hbm_share"])
    assert shares[1000.0]["link_share"] < 0.01
    assert max(shares[1000.0]["gemm_share"], shares[1000.0]["hbm_share"]) > 0.99


def test_a_workload_of_another_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="the workload's layer 'olmoe' is not the environment's"):
        make().reset(options={"workload": make(model="olmoe").scenario.draw(0)})


def test_observations_belong_to_the_caller() -> None:
    env = make()
    first, _ = env.reset(seed=0)
    kept = {name: array.copy() for name, array in first.items()}
    env.step(int(np.flatnonzero(env.action_masks())[0]))
    assert all(np.array_equal(first[name], kept[name]) for name in first)


def test_a_layer_without_decisions_still_takes_one_action() -> None:
    env = make(gpus=2, tokens=1, exposed=("split",), splits=((8, 8), (4, 4)))
    env.reset(seed=0)
    env.step(0)
    env = make(gpus=2, tokens=1, exposed=("dispatch",))
    _, info = env.reset(seed=0)
    assert info["action_mask"].sum() == 1
    _, reward, terminated, _, info = env.step(0)
    assert terminated and reward == pytest.approx(-info["ratio"])
    with pytest.raises(RuntimeError, match="the episode is over; call reset"):
        env.step(0)


def test_schedule_is_complete_and_saves_as_csv(tmp_path: Path) -> None:
    env = make()
    play(env, np.random.default_rng(0), seed=5)
    table = env.schedule()
    slots = 4 * 24 * env.scenario.layer.top_k
    assert sum(row.tokens for row in table if row.stage == "gemm1") == slots
    assert sum(row.tokens for row in table if row.stage == "gemm2") == slots
    assert sum(row.tokens for row in table if row.stage == "combine") == 4 * 24
    assert all(row.end_us >= row.start_us for row in table)
    table.to_csv(tmp_path / "schedule.csv")
    lines = (tmp_path / "schedule.csv").read_text().splitlines()
    assert lines[0] == "item,stage,gpu,resource,tokens,expert,start_us,end_us"
    assert len(lines) == len(table) + 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokns": 3}, "unknown key 'tokns' (did you mean 'tokens'?)"),
        ({"tokens": True}, "tokens=True: must be a number"),
        ({"tokens": "8"}, "tokens='8': must be a number"),
        ({"compute_scale": 1e-12}, "compute_scale=1e-12: Input should be greater than or equal to"),
        ({"exposed": ("gemm", "gemm")}, "names a decision kind twice"),
        ({"seeds": (1, 2**63)}, "must be [first, count]"),
        ({"seeds": (-1, 2)}, "must be [first, count]"),
        ({"seeds": (0, 0)}, "must be [first, count]"),
        ({"tokens": -1}, "tokens=-1: must be from 1 to 1000000"),
        ({"model": "smal"}, "model='smal' is unknown"),
        ({"system": "dgx"}, "system='dgx' is unknown"),
        ({"top_k": 65}, "top_k=65"),
        ({"splits": ((8, 8), (8, 0))}, "splits.1.1=0: Input should be greater than or equal to 1"),
        ({"splits": ((8, 8), (8, 8, 8, 8))}, "splits.1"),
        ({"split_moments": -1}, "split_moments=-1: Input should be greater than or equal to 0"),
        ({"exposed": ("split",), "schedule": "deepep"}, "exposed='split' does not fit schedule='deepep'"),
        ({"exposed": ()}, "exposed must name at least one decision kind"),
        (
            {"render_mode": "human"},
            "render_mode='human' is that of gymnasium.make, which shows 'rgb_array' in a window",
        ),
        ({"render_mode": "humam"}, "render_mode='humam' is unknown; choose from ['ansi', 'rgb_array']"),
        ({"exposed": "gemm"}, "exposed='gemm' must be a list, such as [gemm]"),
        ({"schedule": "dysharq"}, "schedule='dysharq' is unknown"),
        ({"invalid_action": "noop"}, "invalid_action='noop': Input should be 'replace' or 'raise'"),
        ({"invalid_penalty": 0}, "invalid_penalty=0: Input should be greater than 0"),
        ({"max_invalid_actions": 1000}, "unknown key 'max_invalid_actions'"),
        ({"suite": "smoke"}, "gpus=4 has no effect with a suite, whose entries say it"),
    ],
)
def test_bad_settings_give_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make(**settings)
    assert "\n" not in str(error.value)


def test_docstring_tables_describe_every_feature() -> None:
    text = TokenScheduleEnv.__doc__
    assert all(f"| {index} `{name}` |" in text for index, name in enumerate(FEATURES))
    assert all(f"| {index} `{name}` |" in text for index, name in enumerate(CONTEXT))
