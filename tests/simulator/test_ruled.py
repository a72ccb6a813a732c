"""What ``ruled`` shows: 1 on exactly what the schedule's own rule takes, in the engine, the twin and before a layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dysharp_env.schedules import Exposure, Problem, load_schedule
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, ENGINE_KINDS, FEATURES
from dysharp_env.simulator.twin import Twin
from dysharp_env.workload import ScenarioSpec
from tests.conftest import Case

RULED = FEATURES.index("ruled")
ALL = frozenset(range(len(DECISION_KINDS)))


def best_by(weights: np.ndarray, decision: Any) -> int:
    """Returns the legal row of the highest score, the first of equals, ``ruled`` itself being unknown to a rule."""
    shown = decision.features[:, :RULED].astype(float)
    scores = [sum(weight * value for weight, value in zip(weights, row, strict=True)) for row in shown.tolist()]
    return max(np.flatnonzero(decision.mask).tolist(), key=lambda row: scores[row])


def asking(case: Case, seed: int) -> Case:
    """Returns a case that asks everything and has a rule of few weights, whose sums are exact in any order."""
    weights = np.random.default_rng(seed).integers(-1, 2, (len(DECISION_KINDS), len(FEATURES))) * 1.0
    weights[:, RULED] = 5.0  # of what a rule does not see
    weights[:, :RULED] *= np.arange(RULED) % 3 == seed % 3
    return case.with_program(weights=weights, exposed=ALL, network=None, networked=frozenset(), max_candidates=16)


def following() -> Network:
    """Returns a network that takes what is marked."""
    arrays = {name: np.zeros(shape, np.float32) for name, shape in Network.shapes(1).items()}
    arrays["linear"][[CONTEXT.index(f"is_{kind}") for kind in DECISION_KINDS], RULED] = 1
    return Network(**arrays)


@pytest.mark.parametrize("kind", ["engine", "twin"])
def test_it_marks_what_the_rule_takes(random_case: Callable[[int], Case], kind: str) -> None:
    asked: Counter[int] = Counter()
    for seed in range(40):
        case = asking(random_case(seed), seed)
        playing: Engine | Twin = case.engine(logging=False) if kind == "engine" else case.twin()
        while (decision := playing.advance()) is not None:
            marked = np.flatnonzero(decision.features[:, RULED])
            assert len(marked) == 1 and decision.features[marked[0], RULED] == 1 and decision.mask[marked[0]]
            assert marked[0] == best_by(case.program.weights[decision.kind, :RULED], decision)
            asked[decision.kind] += 1
            playing.decide(int(marked[0]))
        # Whoever follows the mark plays as the rule does.
        by_rule = case.with_program(exposed=frozenset()).engine(logging=False).run()
        assert playing.now_ps == by_rule.now_ps, seed
    assert {DECISION_KINDS[kind] for kind in asked} == {*ENGINE_KINDS} and asked.total() > 1000


@pytest.mark.parametrize("kind", ["engine", "twin"])
def test_a_network_sees_it(random_case: Callable[[int], Case], kind: str) -> None:
    for seed in range(20):
        case = asking(random_case(seed), seed).with_program(exposed=frozenset())
        by_rule = case.engine(logging=False).run()
        networked = case.with_program(network=following(), networked=ALL)
        playing: Engine | Twin = networked.engine(logging=False) if kind == "engine" else networked.twin()
        assert playing.advance() is None
        assert playing.now_ps == by_rule.now_ps, seed


PAYS = ("launch", "fused_start", "count_exchange", "plan")
COPIES = {"replicate": {"planner": "rule", "slots": "any", "weights": "unicast"}, "pays.dispatch": PAYS}
RULE = {"plan": {"copies_experts": 1.0, "order": -0.1}, "replicate": {"gain": 1.0, "cost": -0.1, "is_hold": -0.3}}


def test_before_a_layer_it_marks_what_is_chosen_there() -> None:
    scenario = ScenarioSpec(system="dgx-h200", model="olmoe", gpus=4, tokens=512, routing="dsv2-lite:1.9").build()
    problem = Problem.of(scenario.system, scenario.draw(7))
    plans = ["dysharp", {**COPIES, "rule": {"replicate": RULE["replicate"]}}]
    schedule = load_schedule("fused-unicast").with_changes({"plans": plans, "rule": RULE})
    by_rule = problem.run(schedule)
    assert by_rule.schedule.replicate.makes_copies and by_rule.engine.workload.placement.num_copies > 0
    run, kinds = problem.start(schedule, Exposure(("plan", "replicate"))), []
    while (waiting := run.waiting) is not None:
        kinds.append(DECISION_KINDS[waiting.kind])
        (marked,) = np.flatnonzero(waiting.features[:, RULED])
        weights = [RULE[kinds[-1]].get(name, 0.0) for name in FEATURES]
        assert marked == best_by(np.array(weights[:RULED]), waiting) and waiting.mask[marked]
        run.decide(int(marked))
    assert kinds[0] == "plan" and kinds.count("replicate") == len(kinds) - 1 > 1
    assert run.engine.run().now_ps == by_rule.engine.now_ps
    networked = problem.start(schedule, Exposure(("plan", "replicate"), network=following()))
    assert networked.engine.run().now_ps == by_rule.engine.now_ps and networked.opening.asked == len(kinds)
