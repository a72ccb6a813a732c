"""What is decided before a layer starts: the way to run it (``plan``), then which experts are copied (``replicate``).

Both choose what the engine will run, so they come before it. No time passes meanwhile: what deciding costs is paid by
the layer (``pays``). A plan is chosen before anybody knows where tokens go; what is shown of it is worked out for even
routing, and of skew at most what an earlier batch had. Copies are chosen from exchanged counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.schedules.bound import LowerBound
from dysharp_env.schedules.exposure import Exposure
from dysharp_env.schedules.replication import planned, slots_of
from dysharp_env.schedules.replication.choosing import SHOWN, Choosing, Work
from dysharp_env.schedules.replication.serving import shared_out
from dysharp_env.schedules.showing import imbalance_before, plan_features, shape
from dysharp_env.schedules.spec import ScheduleSpec
from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.engine import Decision, Engine, masked
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state.lowering import Lowering
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, FEATURES, PLAN, REPLICATE
from dysharp_env.system import SystemSpec
from dysharp_env.workload import Workload
from dysharp_env.workload.balanced import force_balanced
from dysharp_env.workload.layer import LayerSpec


@dataclass(frozen=True, eq=False)
class Plan:
    """One way to run layers on a machine."""

    schedule: ScheduleSpec
    program: Program

    def __deepcopy__(self, memo: dict[int, object]) -> Plan:
        return self


class Even(NamedTuple):
    """A layer with even routing, for what is shown before anybody knows where tokens go."""

    workload: Workload
    bound: Bound


class Offer:
    """What openings of layers of one kind on one machine choose from; nothing about it changes."""

    def __init__(
        self,
        system: SystemSpec,
        layer: LayerSpec,
        costs: Costs,
        bound: LowerBound,
        schedule: ScheduleSpec,
        exposure: Exposure,
        evens: dict[tuple[bytes, bytes], Even],
    ) -> None:
        """Takes the plans that the machine can run.

        Args:
            system: The machine.
            layer: The layer.
            costs: What things take there.
            bound: What bounds workloads of the layer.
            schedule: Whose ``plans`` they are; without any the schedule is its only plan.
            exposure: Which decisions are asked, or answered by networks.
            evens: Layers with even routing that are known already, by tokens and placement; new ones are added.

        Raises:
            ConfigError: The schedule does not fit the system, or none of its plans does.
        """
        self.system, self.layer, self.costs, self.schedule, self.exposure = system, layer, costs, schedule, exposure
        self._bound = bound
        self.plans: tuple[Plan, ...] = self._fitting()
        if len(self.plans) > exposure.max_candidates:
            raise ConfigError(f"max_candidates={exposure.max_candidates} must be at least plans={len(self.plans)}")
        self._lowerings: dict[tuple[int, bool], Lowering] = {}
        self._evens = evens
        self._shown: dict[tuple[bytes, bytes], tuple[np.ndarray, dict[str, float]]] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> Offer:
        return self

    def _fitting(self) -> tuple[Plan, ...]:
        options = self.schedule.options
        if len(options) == 1:
            return (self._plan(options[0], self.exposure),)
        found, refused = [], ""
        for option in options:
            try:
                found.append(self._plan(option, option.fitting(self.exposure, self.system)))
            except ConfigError as error:
                refused = str(error)
        if not found:
            raise ConfigError(
                f"schedule='{self.schedule.name}': {self.system.name} can run none of its plans: {refused}"
            )
        return tuple(found)

    def _plan(self, schedule: ScheduleSpec, exposure: Exposure) -> Plan:
        schedule.require_sums(self.system, self.layer)
        return Plan(schedule, schedule.program(self.system, exposure))

    def lowering(self, plan: Plan, logging: bool) -> Lowering:
        """Returns what brings layers of a plan into the engine's form, made once."""
        place = self.plans.index(plan)
        if (place, logging) not in self._lowerings:
            self._lowerings[place, logging] = Lowering(self.costs, plan.program, self.system.gpu.num_sms, logging)
        return self._lowerings[place, logging]

    @property
    def makes_copies(self) -> bool:
        """Whether some plan may copy experts."""
        return any(plan.schedule.replicate.makes_copies for plan in self.plans)

    def bound_of(self, workload: Workload, with_copies: Bound | None = None) -> Bound:
        """Returns what nothing can beat that may move experts as some plan may.

        Args:
            workload: One of the layer.
            with_copies: What nothing can beat that may copy experts, if it is known.

        Raises:
            ConfigError: No plan can be taken, as planners need what the workload does not have.
        """
        ways = {plan.schedule.replicate for plan, legal in zip(self.plans, self.legal(workload), strict=True) if legal}
        bounds = [self._bound.of(planned(workload, way)) for way in ways if not way.makes_copies]
        if self.makes_copies:
            bounds.append(with_copies or self._bound.of(workload, copies_allowed=True))
        return min(bounds, key=lambda bound: bound.total_ps)

    def legal(self, workload: Workload) -> np.ndarray:
        """Returns (plan,) bool, which plans can be taken; replicas can be placed where an earlier batch is known.

        Raises:
            ConfigError: None can.
        """
        if workload.past_loads is not None:
            return np.ones(len(self.plans), np.bool_)
        legal = np.array([plan.schedule.replicate.planner != "eplb" for plan in self.plans])
        if not legal.any():
            planned(workload, self.plans[0].schedule.replicate)  # which says why
        return legal

    def shown(self, workload: Workload) -> tuple[np.ndarray, dict[str, float]]:
        """Returns what a plan decision shows: (plan, feature) float32, and context values by name, others being 0."""
        key = (workload.tokens_of_gpu.tobytes(), workload.gpu_of_expert.tobytes())
        if key not in self._shown:
            if key not in self._evens:
                even = force_balanced(workload)
                self._evens[key] = Even(even, self._bound.of(even))
            self._shown[key] = self._show(*self._evens[key])
        rows, context = self._shown[key]
        if not rows[:, _COPIES].any():
            return rows, context
        expected = imbalance_before(workload)
        rows = rows.copy()
        rows[:, _COPIES] *= expected
        return rows, {**context, "imbalance": expected}

    def _show(self, even: Workload, bound: Bound) -> tuple[np.ndarray, dict[str, float]]:
        rows = np.zeros((len(self.plans), len(FEATURES)), np.float32)
        for place, plan in enumerate(self.plans):
            shown = plan_features(plan.schedule, plan.program, even, self.costs, bound, self.system.gpu.num_sms)
            values = {"order": place / self.exposure.max_candidates, **shown}
            rows[place] = [values.get(name, 0.0) for name in FEATURES]
        return rows, {**shape(even, self.costs, bound), "free_sms": 1.0}


_COPIES, _RULED = FEATURES.index("copies_experts"), FEATURES.index("ruled")
_SHOWN = [FEATURES.index(name) for name in SHOWN]


class Opening:
    """The decisions before one layer, up to its engine.

    Attributes:
        asked, decisions: Decisions answered from outside or by a network so far, and all with more than one answer.
    """

    def __init__(self, offer: Offer, workload: Workload, bound: Bound, plan: int | None = None) -> None:
        """Takes decisions up to the first that is asked; the plan is the one of that place, if one is given."""
        self._offer, self._routed, self._bound = offer, workload, bound
        self._plan: Plan | None = None
        self._choosing: Choosing | None = None
        self.workload: Workload | None = None
        self.asked = self.decisions = 0
        if len(offer.plans) == 1:
            plan = 0
        if plan is not None:
            self._take(PLAN, plan)
        self._go_on()

    @property
    def offered(self) -> ScheduleSpec:
        """The schedule whose plans are chosen from."""
        return self._offer.schedule

    @property
    def plan(self) -> Plan:
        """The plan that was chosen."""
        assert self._plan is not None
        return self._plan

    def engine(self, logging: bool) -> Engine:
        """Returns the engine at time zero, which counts on from the decisions taken here."""
        assert self.workload is not None
        engine = Engine(self._offer.lowering(self.plan, logging), self.workload, self._bound)
        engine.state.root["asked"], engine.state.root["decisions"] = self.asked, self.decisions
        return engine

    @property
    def decision(self) -> Decision | None:
        """What is asked; None when the layer may start."""
        return self._asked

    def decide(self, row: int) -> None:
        """Answers what is asked with the row of a legal candidate.

        Raises:
            ValueError: The row is masked.
        """
        waiting = self._asked
        assert waiting is not None
        if not 0 <= row < len(waiting.mask) or not waiting.mask[row]:
            raise masked(row, waiting.mask)
        self.asked += 1
        self.decisions += 1
        self._take(waiting.kind, row)
        self._go_on()

    def _go_on(self) -> None:
        """Decides until something has to be asked, or nothing is left to decide."""
        self._asked: Decision | None = None
        while self.workload is None:
            waiting = self._next()
            if waiting.mask.sum() == 1:
                self._take(waiting.kind, int(waiting.mask.argmax()))
                continue
            answer = self._answer(waiting)
            if answer is None:
                self._asked = waiting
                return
            self.decisions += 1
            self._take(waiting.kind, answer)

    def _next(self) -> Decision:
        if self._plan is None:
            return self._decision(PLAN, *self._offer.shown(self._routed), self._offer.legal(self._routed))
        return self._copying()

    def _decision(self, kind: int, rows: np.ndarray, context: Mapping[str, float], legal: np.ndarray) -> Decision:
        size = self._offer.exposure.max_candidates
        features = np.zeros((size, len(FEATURES)), np.float32)
        features[: len(rows)] = rows
        values = {**context, f"is_{DECISION_KINDS[kind]}": 1.0}
        shown = np.array([values.get(name, 0.0) for name in CONTEXT], np.float32)
        mask = np.zeros(size, np.bool_)
        mask[: len(rows)] = legal
        waiting = Decision(kind, 0, len(rows), features, shown, mask)
        features[best_by_rule(self._weights(kind), waiting), _RULED] = 1
        return waiting

    def _weights(self, kind: int) -> np.ndarray:
        """Returns the (feature,) weights of the rule in force: the plan's, once there is one."""
        schedule = self._plan.schedule if self._plan else self._offer.schedule
        return schedule.rule.matrix()[kind]

    def _answer(self, waiting: Decision) -> int | None:
        """Returns the row that whoever is inside takes; None if it has to be asked."""
        exposure, kind = self._offer.exposure, waiting.kind
        network = exposure.opening or exposure.network
        if DECISION_KINDS[kind] not in exposure.kinds:
            return int(waiting.features[:, _RULED].argmax())
        if network is None:
            return None
        self.asked += 1
        count = waiting.num_candidates
        return network.best(waiting.features[:count], waiting.context, waiting.mask[:count])

    def _take(self, kind: int, row: int) -> None:
        if kind == PLAN:
            self._plan = self._offer.plans[row]
            replicate = self._plan.schedule.replicate
            if replicate.planner != "rule":
                self.workload = planned(self._routed, replicate)
                return
            slots = slots_of(replicate, self._routed.layer.experts, self._routed.num_gpus)
            work = Work.of(self._offer.costs, self._plan.program, self._routed.layer.tile_tokens)
            self._choosing = Choosing(self._routed, slots, work, self._bound.total_ps)
            return
        choosing = self._choosing
        assert choosing is not None
        if row < len(choosing.moves):
            choosing.take(row)
            return
        most_sends = self.plan.schedule.replicate.most_sends
        self.workload = shared_out(self._routed, choosing.before, choosing.sharing, most_sends)

    def _copying(self) -> Decision:
        """Returns the decision on the next copy: what would relieve somebody, and enough."""
        choosing, most = self._choosing, self._offer.exposure.max_candidates
        assert choosing is not None
        shown = choosing.listed(most - 1)
        count = len(shown)
        rows = np.zeros((count + 1, len(FEATURES)), np.float32)
        rows[:count, FEATURES.index("order")] = np.arange(count) / most
        rows[:count, _SHOWN] = shown
        rows[count, FEATURES.index("is_hold")] = 1.0
        imbalance = 1 - 1 / choosing.sharing.imbalance
        context = {**shape(self._routed, self._offer.costs, self._bound), "imbalance": imbalance}
        return self._decision(REPLICATE, rows, context, np.ones(count + 1, np.bool_))


def best_by_rule(weights: np.ndarray, decision: Decision) -> int:
    """Returns the legal row that (feature,) weights score highest, the first of equals."""
    return int(np.where(decision.mask, scores_by_rule(weights, decision.features), -np.inf).argmax())


def scores_by_rule(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Returns the (row,) float64 scores of (row, feature) features under (feature,) weights.

    One feature is added after the other, as the engine adds them: the same bits, so the same ties.
    """
    scores = np.zeros(len(features))
    for column in np.flatnonzero(weights):
        scores += weights[column] * features[:, column].astype(np.float64)
    return scores
