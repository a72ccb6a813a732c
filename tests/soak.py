"""Searches for layers that break a law: ``python -m tests.soak --count 10000 --workers 2``, or ``make soak``.

A seed is a random layer of any shape, perhaps with copies, on a random machine under a random program, decisions drawn
(``draw_case``); and, for what concerns the environment, a random workload under a shipped schedule with every kind of
decision exposed. Every property below is tried on every seed. One that fails is a line with its seed, which plays
it again: ``--first SEED --count 1``. What was checked, and how often, is printed and can be stored (``--json``).
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dysharp_env.config import preset_names
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.envs.vector import TokenScheduleVectorEnv
from dysharp_env.multimem import execute, random_tensors
from dysharp_env.schedules import LowerBound
from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.record import record
from dysharp_env.validation.symmetries import half_as_fast
from dysharp_env.workers import Processes, Workers
from tests.conftest import Case, draw_case, draw_system
from tests.envs.test_observation_space import make
from tests.multimem.small_layers import HIDDEN, INNER, is_dense
from tests.random_workloads import Draw
from tests.schedules.test_family_bound import bounds_of, planned_case, play_at_random
from tests.simulator import test_invariants as laws
from tests.simulator.buffer_rules import check_buffers_hold_their_credits
from tests.simulator.run_log import play as play_logged
from tests.simulator.run_log import uses
from tests.simulator.test_clone import assert_same_story, play_on
from tests.simulator.test_twin import assert_same_history, play

SLOTS, TLB_ENTRIES = 3, 5  # so few that sums are evicted and mappings read again
SECONDS_A_LOOK = 30.0  # between lines that say how far it is
_MOST_COPIES = 3  # environments beside each other


def laws_of_physics(case: Case, seed: int) -> None:
    """Every expert computes its tokens once, all moves once, nothing early, beyond capacity or uncounted."""
    state = play_logged(case, seed).state
    log = uses(state)
    laws.check_every_expert_computes_its_tokens_once(case, state)
    laws.check_everything_moves_once(case, state, log)
    laws.check_nothing_starts_before_its_inputs(case, state, log)
    laws.check_nothing_is_used_beyond_capacity(case, state, log)
    laws.check_gates_are_kept(case, state, log)
    check_buffers_hold_their_credits(case, log)
    laws.check_traffic_is_packet_arithmetic(case, state, log)


def twin_and_function(case: Case, seed: int) -> None:
    """The twin agrees to the picosecond, and what was scheduled gives the dense layer on real vectors."""
    engine, twin = play(case, seed)
    assert_same_history(engine.state, twin)
    tensors = random_tensors(case.workload, HIDDEN, INNER, seed)
    outputs = execute(record(engine), case.workload, tensors, reduction_slots=SLOTS, al_tlb_entries=TLB_ENTRIES)
    assert is_dense(outputs, case.workload, tensors), "the functional machine computes something else"


def bounds_hold(case: Case, seed: int) -> None:
    """No layer beats the bound of its program, of any schedule or of any that may copy; also when it is planned."""
    bounds = bounds_of(case, seed)
    copies_ps = bounds.copies_ps if bounds.copies_ps <= bounds.placed_ps else 2**62
    shared = planned_case(case, seed)
    for each in (case,) if shared.workload is case.workload else (case, shared):
        own = bounds if each is case else bounds_of(each, seed)
        now_ps = play_at_random(each.engine(logging=False), seed)
        assert now_ps >= max(own.family_ps, own.any_ps, max(copies_ps, own.copies_ps) if each is not case else 0)


def clones_and_pickles_play_on(case: Case, seed: int) -> None:
    """A clone and a pickle of a layer, made somewhere in the middle, play on as it does."""
    engine = case.engine(logging=False)
    rng = np.random.default_rng(seed)
    play_on(engine, rng, most=int(rng.integers(0, 20)))
    others = engine.clone(), pickle.loads(pickle.dumps(engine))  # its own, a moment ago
    story = play_on(engine, np.random.default_rng(seed))
    for other in others:
        assert_same_story(play_on(other, np.random.default_rng(seed)), story)
        assert other.now_ps == engine.now_ps


def decisions_are_shown_in_their_space(case: Case, seed: int) -> None:
    """What is shown of candidates and context lies in [0, 1]; some row is legal, and none beyond the last."""
    rng, engine = np.random.default_rng(seed), case.engine(logging=False)
    while (asked := engine.advance()) is not None:
        features, context, mask = engine.state.features, engine.state.context, asked.mask
        assert mask.any()
        assert 0 <= features.min() and features.max() <= 1 and 0 <= context.min() and context.max() <= 1
        engine.decide(int(rng.choice(np.flatnonzero(mask))))


def names_do_not_matter_to_bounds(case: Case, seed: int) -> None:
    """Under other numbers for the GPUs what bounds any schedule is the same."""
    faults = case.costs.faults
    is_singled_out = case.costs.slow_permille != 1000 or faults.slow_link_permille != 1000 or faults.late_ps > 0
    if is_singled_out or case.costs.team_gpus < case.workload.num_gpus:
        return  # GPU 0 is another one, and neighbours are the teams: there numbers mean something
    order = np.random.default_rng(seed).permutation(case.workload.num_gpus)
    other = case._replace(workload=case.workload.renamed(order))
    # The first is of a program, which sends to GPUs by number.
    assert bounds_of(other, seed)[1:] == bounds_of(case, seed)[1:]


def bounds_fall_as_machines_get_faster(case: Case, seed: int) -> None:
    """A machine with faster links, memory or SMs has no higher bound; one of half the speed has twice the bound."""
    system, layer, workload = draw_system(Draw(seed), case.workload.num_gpus), case.workload.layer, case.workload

    def bound_ps(machine: object) -> int:
        return LowerBound(machine, layer, Costs.of(machine, layer)).of(workload).total_ps  # type: ignore[arg-type]

    before_ps = bound_ps(system)
    for key in ("link.gbps", "gpu.hbm_gbps", "gpu.bf16_tflops", "gpu.fp8_tflops"):
        node, _, name = key.partition(".")
        value = getattr(getattr(system, node), name)
        assert bound_ps(system.with_changes({key: value * (1 + seed % 7)})) <= before_ps * (1 + 1e-6) + 1000, key
    if system.link.time_quantum_ps == 1:
        assert abs(bound_ps(half_as_fast(system)) / (2 * before_ps) - 1) < 1e-3


def environments_keep_their_word(_: Case, seed: int) -> None:
    """Under a shipped schedule, all kinds exposed: observations in their space, the return is minus the ratio."""
    env = _environment(seed)
    rng, total = np.random.default_rng(seed), 0.0
    observation, info = env.reset(seed=seed)
    done = False
    while not done:
        assert env.observation_space.contains(observation)
        action = int(rng.choice(np.flatnonzero(info["action_mask"])))
        observation, reward, done, _, info = env.step(action)
        total += float(reward)
    assert env.observation_space.contains(observation)
    assert abs(total + info["ratio"]) < 1e-4 * info["ratio"] and info["ratio"] >= 1


def copies_play_as_one_alone(_: Case, seed: int) -> None:
    """Copy ``i`` of a vector environment plays what an environment plays with seed ``i`` above the first."""
    alone, count = _environment(seed), 1 + seed % _MOST_COPIES
    many = TokenScheduleVectorEnv(count, **alone.settings.model_dump())
    observations, infos = many.reset(seed=seed)
    for copy in range(count):
        observation, info = alone.reset(seed=seed + copy)
        for name, array in observation.items():
            assert np.array_equal(array, observations[name][copy])
        assert np.array_equal(info["action_mask"], infos["action_mask"][copy])


def _environment(seed: int) -> TokenScheduleEnv:
    draw = Draw(seed)
    names = preset_names("schedules")
    layer = {
        "model": draw.pick("model", "olmoe", "mixtral-8x7b", "small", "qwen3-30b"),
        "gpus": draw.pick("gpus", 2, 4, 8),
        "tokens": draw.between("tokens", 1, 24),
        "routing": draw.pick("routing", "uniform", "dsv2-lite", "power-law:1.0"),
        "max_candidates": draw.pick("max_candidates", 4, 8, 32),
    }
    return make(names[seed % len(names)], layer)


PROPERTIES: dict[str, Callable[[Case, int], None]] = {
    each.__name__: each
    for each in (
        *(laws_of_physics, twin_and_function, bounds_hold, clones_and_pickles_play_on),
        *(decisions_are_shown_in_their_space, names_do_not_matter_to_bounds, bounds_fall_as_machines_get_faster),
        *(environments_keep_their_word, copies_play_as_one_alone),
    )
}


class Found(NamedTuple):
    """A property that a seed breaks."""

    seed: int
    name: str
    text: str


class Chunk(NamedTuple):
    """Seeds that one worker tries, one after the other."""

    seeds: range
    names: tuple[str, ...]

    def run(self) -> list[Found]:
        """Returns what they break."""
        return [found for seed in self.seeds for found in broken_by(seed, self.names)]


def broken_by(seed: int, names: Sequence[str] = tuple(PROPERTIES)) -> list[Found]:
    """Returns the properties that a seed breaks."""
    case, found = draw_case(seed), []
    for name in names:
        try:
            PROPERTIES[name](case, seed)
        except Exception:
            found.append(Found(seed, name, traceback.format_exc(limit=-2)))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Tries seeds; the exit status is 1 if one breaks a property."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--only", action="append", choices=PROPERTIES, help="try this property; repeatable")
    parser.add_argument("--json", help="store what was checked, how often, and what was found")
    args = parser.parse_args(argv)
    names, started_s, shown_s = tuple(args.only or PROPERTIES), time.perf_counter(), time.perf_counter()
    for name in names:
        print(f"{name}: {PROPERTIES[name].__doc__}")
    found: list[Found] = []
    step = 10 * args.workers
    with Processes(args.workers) if args.workers > 1 else Workers() as workers:
        for first in range(args.first, args.first + args.count, step):
            seeds = range(first, min(first + step, args.first + args.count))
            chunks = [Chunk(seeds[start :: args.workers], names) for start in range(args.workers)]
            for each in sum(workers.map(Chunk.run, chunks), []):
                found.append(each)
                print(f"seed {each.seed} breaks {each.name}: {each.text}", flush=True)
            if time.perf_counter() - shown_s > SECONDS_A_LOOK:
                shown_s = time.perf_counter()
                print(f"{seeds.stop - args.first} of {args.count} seeds, {shown_s - started_s:.0f} s", flush=True)
    broken = {name: sum(each.name == name for each in found) for name in names}
    for name in names:
        print(f"{name}: {args.count} examples, {broken[name]} broken")
    print(f"{args.count} seeds from {args.first} in {time.perf_counter() - started_s:.0f} s: {len(found)} found")
    if args.json:
        content = {"first": args.first, "count": args.count, "broken": broken, "found": [each[:2] for each in found]}
        Path(args.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return bool(found)


if __name__ == "__main__":
    raise SystemExit(main())
