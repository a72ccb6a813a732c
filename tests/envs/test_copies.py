"""Copies play on as their originals would have, wherever they are loaded, and neither notices the other."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorEpisodeStatistics

import dysharp_env
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.envs.vector import TokenScheduleVectorEnv
from dysharp_env.schedules import Exposure, LayerRun, Starter, load_schedule
from dysharp_env.simulator import engine as engines
from dysharp_env.simulator.batch import Batch
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.state import codes, records
from dysharp_env.workload import ScenarioSpec

ENV_ID = "DySHARP/TokenSchedule-v2"
SCENARIO = {"model": "olmoe", "top_k": 2, "gpus": 2, "tokens": 6, "routing": "uniform"}
TINY = {**SCENARIO, "max_candidates": 16, "exposed": ("split", "dispatch", "gemm"), "split_moments": 2}
MOMENTS = ("new", "middle", "end")


def start_layer() -> LayerRun:
    scenario = ScenarioSpec(**SCENARIO).build()
    exposure = Exposure(("dispatch", "gemm"), max_candidates=16)
    starter = Starter(scenario.system, scenario.layer, load_schedule("dysharp"), exposure=exposure, logging=True)
    return starter.start(scenario.draw(3))


def make_engine(moment: str) -> Engine:
    engine = start_layer().engine
    play_engine(engine, {"new": 0, "middle": 9, "end": 10**9}[moment])
    return engine


def make_layer(moment: str) -> LayerRun:
    """Returns a layer that sits among others, if it has begun."""
    return start_layer() if moment == "new" else make_env(moment).run


def make_batch(moment: str) -> Batch:
    batch = Batch(3, 16)
    if moment != "new":
        for index in (0, 2):
            batch.place(index, start_layer().engine)
        play_batch(batch, 9 if moment == "middle" else 10**9)
    return batch


def make_env(moment: str, wrap: Callable[..., Any] = lambda env: env) -> TokenScheduleEnv | RecordEpisodeStatistics:
    env = wrap(TokenScheduleEnv(**TINY, log=True))
    env.action_space.seed(5)
    if moment != "new":
        env.reset(seed=8)
        play_env(env, 9 if moment == "middle" else 10**9)
    return env


def make_wrapped(moment: str) -> Any:
    # Wrapped by gymnasium.make besides, which checks the order of calls.
    return make_env(moment, lambda env: RecordEpisodeStatistics(TimeLimit(gymnasium.make(ENV_ID, **TINY), 10**6)))


def make_vector(moment: str, threads: int = 1) -> TokenScheduleVectorEnv:
    envs = TokenScheduleVectorEnv(3, threads=threads, **TINY, copy=False)
    if moment != "new":
        envs.reset(seed=8)
        play_vector(envs, 9 if moment == "middle" else 10**9, until_an_end=True)
    return envs


MAKERS = {
    "engine": make_engine,
    "layer": make_layer,
    "batch": make_batch,
    "environment": make_env,
    "wrapped environment": make_wrapped,
    "vector environment": make_vector,
    "vector environment on threads": lambda moment: make_vector(moment, 2),
    "wrapped vector environment": lambda moment: RecordVectorEpisodeStatistics(make_vector(moment)),
}
LONG = 90  # steps of a vector environment in which every copy begins anew


def choose(mask: np.ndarray, number: int) -> int:
    """Returns some legal row, the same for the same number."""
    legal = np.flatnonzero(mask)
    return int(legal[number * 7 % len(legal)])


def play_engine(engine: Engine, most: int = 10**9) -> list:
    story = []
    waits = engine.status == codes.ASK or (not engine.done and engine.advance() is not None)
    while waits and len(story) < most:
        state = engine.state
        story.append((engine.now_ps, state.features.tobytes(), state.context.tobytes(), state.mask.tobytes()))
        engine.decide(choose(state.mask, len(story)))
        waits = engine.advance() is not None
    return story


def play_batch(batch: Batch, most: int = 10**9) -> list:
    story: list = []
    batch.advance()
    while (batch.status == codes.ASK).any() and len(story) < most:
        shown = (batch.rows, batch.context, batch.mask, batch.now_ps, batch.asked, batch.decisions)
        story.append([array.tobytes() for array in shown])
        choices = np.array([choose(mask, len(story)) if mask.any() else 0 for mask in batch.mask])
        batch.answer(batch.status == codes.ASK, choices)
        batch.advance()
    return story


def play_env(env: TokenScheduleEnv | RecordEpisodeStatistics, most: int = 10**9) -> list:
    story: list = []
    while len(story) < most:
        step = env.step(choose(env.unwrapped.action_masks(), len(story)))
        story.append(plain(step))
        if step[2]:
            break
    return story


def play_vector(envs: TokenScheduleVectorEnv | Any, most: int, until_an_end: bool = False) -> list:
    story: list = []
    ended = np.zeros(envs.num_envs, bool)
    while len(story) < most and not (until_an_end and ended.any()):
        masks = envs.unwrapped.action_masks()
        step = envs.step(np.array([choose(mask, len(story)) if mask.any() else 0 for mask in masks]))
        story.append(plain(step))
        ended |= step[2]
    assert most < LONG or until_an_end or ended.all()
    return story


def plain(given: Any) -> Any:
    """Returns what an environment returned as bytes and numbers; wrappers' clocks are left out."""
    if isinstance(given, np.ndarray):
        return given.dtype.str, given.shape, given.tobytes()
    if isinstance(given, dict):
        return [(name, plain(value)) for name, value in given.items() if name not in ("t", "_t")]
    return [plain(item) for item in given] if isinstance(given, tuple | list) else given


def end_of(engine: Engine) -> tuple:
    state = engine.state
    log = state.log[: state.root["log_size"][0]]
    return engine.now_ps, engine.asked, state.tokens.tobytes(), state.traffic.tobytes(), log.tobytes()


def tell(thing: Any) -> str:
    """Plays something from where it is to its end and beyond, and returns a digest of all that could be seen."""
    if isinstance(thing, Engine):
        story = [play_engine(thing), end_of(thing)]
    elif isinstance(thing, LayerRun):
        story = [play_engine(thing.engine), end_of(thing.engine), repr(thing.result())]
    elif isinstance(thing, Batch):
        story = [play_batch(thing), [end_of(engine) for engine in thing.engines if engine]]
        thing.place(1, start_layer().engine)
        story.append(play_batch(thing))
        thing.close()
    elif isinstance(thing.unwrapped, TokenScheduleEnv):
        run = thing.unwrapped._episodes._runs[0]
        story = [play_env(thing)] if run is not None and not run.engine.done else []
        # What has no stream yet is given one; the next routings come from the stream there is.
        for seed in (None if run else 4, None):
            story += [plain(thing.reset(seed=seed)), int(thing.action_space.sample()), play_env(thing)]
        story += [tuple(thing.unwrapped.schedule()), tell(thing.unwrapped.run)]
    else:
        story = [plain(thing.reset(seed=4))] if None in thing.unwrapped._episodes._runs else []
        story += [play_vector(thing, LONG), plain(thing.reset()), play_vector(thing, 3)]
        thing.close()
    return hashlib.sha256(repr(story).encode()).hexdigest()


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "cloudpickle": lambda thing: pickle.loads(cloudpickle.dumps(thing)),
    "copy": copy.copy,
    "clone": lambda thing: thing.clone(),
}
OWNERS = ("engine", "environment", "vector environment", "vector environment on threads")
# What a layer's run and a wrapper hold, a shallow copy of them shares; and only what is played can be cloned.
PAIRS = [
    (kind, way)
    for kind in MAKERS
    for way in WAYS
    if kind in OWNERS or way not in ("copy", "clone") or (kind, way) == ("batch", "copy")
]


@pytest.fixture(scope="module")
def stories() -> dict:
    """What things that nobody copied play."""
    return {(kind, moment): tell(make(moment)) for kind, make in MAKERS.items() for moment in MOMENTS}


@pytest.mark.parametrize(("kind", "way"), PAIRS)
def test_a_copy_plays_on_as_the_original_and_neither_notices(kind: str, way: str, stories: dict) -> None:
    for moment in MOMENTS:
        original = MAKERS[kind](moment)
        first = WAYS[way](original)
        second = WAYS[way](first)
        assert [tell(thing) for thing in (first, original, second)] == [stories[kind, moment]] * 3, moment


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", ["engine", "layer", "batch"])
def test_arrays_sent_beside_a_pickle_are_not_written_to(kind: str, moment: str, stories: dict) -> None:
    original = MAKERS[kind](moment)
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(original, protocol=5, buffer_callback=buffers.append)
    # The first is given the very memory of the original, the second what it may not write to.
    made = pickle.loads(data, buffers=buffers), pickle.loads(data, buffers=[bytes(buffer) for buffer in buffers])
    assert [tell(thing) for thing in (*made, original)] == [stories[kind, moment]] * 3


def test_another_process_plays_on_as_this_one_would_have(tmp_path: Path, stories: dict) -> None:
    for kind, make in MAKERS.items():
        for moment in MOMENTS:
            (tmp_path / f"{kind}, {moment}").write_bytes(pickle.dumps(make(moment)))
    sources = {"PYTHONPATH": str(Path(dysharp_env.__file__).parents[1])}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **sources})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {f"{kind}, {moment}": story for (kind, moment), story in stories.items()}


def test_what_was_handed_out_stays_the_owner_s() -> None:
    envs = TokenScheduleVectorEnv(2, **TINY, copy=False)
    shown, _ = envs.reset(seed=0)
    before = {name: array.copy() for name, array in shown.items()}
    for other in (copy.deepcopy(envs), envs.clone()):
        theirs, *_ = other.step(other.action_masks().argmax(axis=1))
        for name, array in shown.items():
            assert not np.shares_memory(array, theirs[name])
            np.testing.assert_array_equal(array, before[name])
    play_vector(envs, 9)
    assert not np.array_equal(shown["candidates"], before["candidates"])


def test_a_clone_shares_what_never_changes() -> None:
    env = make_env("middle")
    clone, deep = env.clone(), copy.deepcopy(env)
    assert clone.scenario is env.scenario and clone.settings is env.settings
    assert deep.scenario is not env.scenario and deep.scenario.spec == env.scenario.spec
    assert clone.run.engine is clone._episodes.batch.engines[0] is not env.run.engine


def test_a_pickle_of_another_version_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pickles = [pickle.dumps(MAKERS[kind]("middle")) for kind in ("engine", "wrapped vector environment")]
    wider = np.dtype([*records.TILE.descr, ("new", np.int64)])
    monkeypatch.setitem(records.ARRAYS, "tiles", wider)
    here = engines.state_format.__wrapped__()
    assert here != engines.state_format()
    monkeypatch.setattr(engines, "state_format", lambda: here)
    for text in pickles:
        with pytest.raises(ValueError, match="the pickled layer is of another version of the engine") as error:
            pickle.loads(text)
        assert "\n" not in str(error.value)


if __name__ == "__main__":
    found = {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()}
    print(json.dumps({name: tell(pickle.loads(text)) for name, text in found.items()}))
