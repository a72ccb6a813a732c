"""Runs workloads under schedules: a ``Problem`` is what is scheduled, a ``LayerRun`` one try at it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from dysharp_env.schedules.bound import LowerBound
from dysharp_env.schedules.exposure import Exposure
from dysharp_env.schedules.family_bound import FamilyBound, family_bound
from dysharp_env.schedules.opening import Even, Offer, Opening
from dysharp_env.schedules.spec import ScheduleSpec
from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.engine import Decision, Engine
from dysharp_env.simulator.hardware import PS_PER_US
from dysharp_env.simulator.result import LayerResult, summarise
from dysharp_env.simulator.twin import Twin
from dysharp_env.system import SystemSpec
from dysharp_env.workload import Workload
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.renaming import gpu_order
from dysharp_env.workload.suite import Resource, SuiteWorkload

# What every fused schedule pays whatever the layer.
_FIXED = ("launch", "fused_start", "count_exchange")


class LayerRun:
    """One try at a workload: what is decided before its layer starts, and the engine from there on.

    Attributes:
        routed: The workload as it was before anybody shared it out; what runs is ``engine.workload``.
    """

    def __init__(
        self, offer: Offer, routed: Workload, bound: Bound, *, logging: bool = False, plan: int | None = None
    ) -> None:
        """Starts the layer, unless something is asked before.

        Args:
            offer: What is decided before it.
            routed: The workload.
            bound: Its lower bound.
            logging: Whether the engine records every use of a link and SM group.
            plan: Which of the plans it runs; None leaves that to be decided.
        """
        self.opening = Opening(offer, routed, bound, plan)
        self.routed, self._offer, self._bound, self._logging = routed, offer, bound, logging
        self._engine: Engine | None = None
        self._start()

    def _start(self) -> None:
        opening = self.opening
        if opening.decision is None:
            self._engine = opening.engine(self._logging)

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            RuntimeError: Decisions are asked before the layer can start.
        """
        if self._engine is None:
            raise RuntimeError("the layer has not started: its plan or copies are still to be decided")
        return self._engine

    @property
    def lower_bound_ps(self) -> int:
        """What nothing can beat that may move experts as some plan may."""
        return self._bound.total_ps

    @property
    def system(self) -> SystemSpec:
        """The machine that it runs on."""
        return self._offer.system

    @property
    def schedule(self) -> ScheduleSpec:
        """What it runs: the plan that was chosen, and of a schedule with ``best_of`` the variant."""
        return self.opening.plan.schedule

    @property
    def offered(self) -> ScheduleSpec:
        """The schedule that it was started under, whose plans, if it has some, were to choose from."""
        return self.opening.offered

    @property
    def variant(self) -> dict[str, Any] | None:
        """Which of its schedule's ``best_of`` it runs; None if there is none."""
        return dict(self.schedule.best_of[0]) if self.schedule.best_of else None

    @property
    def waiting(self) -> Decision | None:
        """The decision that waits before the layer; None once it has started."""
        return self.opening.decision if self._engine is None else None

    def advance(self) -> Decision | None:
        """Runs to the next decision that is asked and returns it, or None when the layer is done.

        Raises:
            RuntimeError: See ``Engine.advance``.
        """
        return self.waiting or self.engine.advance()

    def decide(self, row: int) -> None:
        """Answers the waiting decision; see ``Engine.decide``, which raises as this does."""
        if self._engine is None:
            self.opening.decide(row)
            self._start()
        else:
            self._engine.decide(row)

    def twin(self) -> Twin:
        """Returns the twin at time zero of what the engine runs."""
        engine = self.engine
        num_sms = int(engine.state.root["num_sms"][0])
        return Twin(engine.workload, self._offer.costs, engine.program, num_sms, self._bound)

    def family_bound(self) -> FamilyBound:
        """Returns what nothing can beat that runs by the engine's program, whatever it decides; takes milliseconds."""
        engine = self.engine
        num_sms = int(engine.state.root["num_sms"][0])
        return family_bound(engine.workload, engine.costs, engine.program, num_sms, self.lower_bound_ps)

    def result(self, *, family: bool = False) -> LayerResult:
        """Returns the result, with the bound of the program's ``family`` or not; the engine must be done."""
        return summarise(self.engine, self.lower_bound_ps, self.family_bound().total_ps if family else None)


@dataclass(frozen=True, eq=False)
class Problem:
    """A workload on a machine, with all that does not depend on who schedules it.

    Attributes:
        name: The workload's name in its suite, or its own.
        system: The machine.
        workload: The layer and its routing.
        costs: What things take there, at the resolution that is simulated.
        bound: What no schedule can beat that leaves experts where they are, the same at every resolution.
        renaming: Which numbers its GPUs have; 0 for those of the machine. See ``renamed``.
    """

    name: str
    system: SystemSpec
    workload: Workload
    costs: Costs
    bound: Bound
    renaming: int = field(default=0, kw_only=True)

    @classmethod
    def of(
        cls,
        system: SystemSpec,
        workload: Workload,
        *,
        compute_scale: float = 1.0,
        resolution: str = "token",
        name: str = "",
    ) -> Problem:
        """Returns the problem of a workload; see ``Starter`` for the arguments.

        Raises:
            ConfigError: There is no such resolution, or the workload is too large for exact integer time.
        """
        costs = Costs.of(system, workload.layer, compute_scale, resolution)
        return cls(
            name or workload.name, system, workload, costs, _lower_bound(system, costs, workload.layer).of(workload)
        )

    @classmethod
    def of_suite(cls, items: Iterable[SuiteWorkload]) -> list[Problem]:
        """Returns the problems of a suite's workloads, under their names there.

        Raises:
            ConfigError: A workload is too large for exact integer time.
        """
        return [
            cls.of(item.scenario.system, item.workload, compute_scale=item.entry.compute_scale, name=item.name)
            for item in items
        ]

    @property
    def size(self) -> int:
        """Roughly how much there is to simulate: (token, expert) pairs."""
        return self.workload.topk_ids.size

    def renamed(self, renaming: int) -> Problem:
        """Returns the problem with other numbers for its GPUs, those of ``gpu_order``; itself for 0."""
        if renaming == self.renaming:
            return self
        assert self.renaming == 0, self.renaming
        workload = self.workload.renamed(gpu_order(self.system, renaming))
        return replace(self, workload=workload, renaming=renaming)

    @property
    def binds(self) -> Resource:
        """What the lower bound needs longest; software where the start of a fused kernel takes longer."""
        fixed_ps = round(sum(self.system.overhead_us(cost) for cost in _FIXED) * PS_PER_US)
        bound = self.bound
        needs_ps: dict[Resource, int] = {
            "links": bound.links_ps,
            "memory": bound.hbm_ps,
            "compute": bound.gemms_ps,
            "software": fixed_ps,
        }
        return max(needs_ps, key=lambda resource: needs_ps[resource])

    def twin(self, schedule: ScheduleSpec, exposure: Exposure) -> Twin:
        """Returns the twin at time zero, as ``start`` does the engine; nothing may be asked before that."""
        return self.start(schedule, exposure).twin()

    def bound_under(self, schedule: ScheduleSpec) -> Bound:
        """Returns what nothing can beat that may move experts as this schedule may; ``bound`` if it moves none.

        Raises:
            ConfigError: The schedule's planner needs what the workload does not have, or it does not fit the system.
        """
        return self._bound_of(self.offer(schedule, Exposure()))

    def _bound_of(self, offer: Offer) -> Bound:
        return offer.bound_of(self.workload, self.copies_bound if offer.makes_copies else None)

    def offer(self, schedule: ScheduleSpec, exposure: Exposure) -> Offer:
        """Returns what is decided before the layer and what the engine and the twin then run.

        Raises:
            ConfigError: The schedule does not fit the system.
        """
        layer = self.workload.layer
        return Offer(self.system, layer, self.costs, self._lower_bound, schedule, exposure, self._evens)

    @cached_property
    def _evens(self) -> dict[tuple[bytes, bytes], Even]:
        return {}

    @cached_property
    def copies_bound(self) -> Bound:
        """What no schedule can beat that copies any experts in the layer, or none, and shares their tokens at will."""
        return self._lower_bound.of(self.workload, copies_allowed=True)

    @cached_property
    def _lower_bound(self) -> LowerBound:
        return _lower_bound(self.system, self.costs, self.workload.layer)

    def start(
        self,
        schedule: ScheduleSpec,
        exposure: Exposure = Exposure(),  # noqa: B008 (frozen)
        *,
        logging: bool = False,
    ) -> LayerRun:
        """Returns the layer at time zero under a schedule; see ``Starter`` for the arguments.

        Raises:
            ConfigError: The schedule does not fit the system, or its planner the workload.
        """
        offer = self.offer(schedule, exposure)
        return LayerRun(offer, self.workload, self._bound_of(offer), logging=logging)

    def under_each_plan(
        self, schedule: ScheduleSpec, exposure: Exposure, places: Iterable[int] | None = None
    ) -> list[LayerRun]:
        """Returns the layer at time zero under each of a schedule's plans that can be taken, or some of these.

        Raises:
            ConfigError: The schedule does not fit the system.
        """
        offer = self.offer(schedule, exposure)
        bound = self._bound_of(offer)
        chosen = offer.legal(self.workload).nonzero()[0].tolist() if places is None else places
        return [LayerRun(offer, self.workload, bound, plan=place) for place in chosen]

    def run(self, schedule: ScheduleSpec, *, logging: bool = False) -> LayerRun:
        """Returns the layer run to its end by a schedule's own rule, under the fastest of its variants.

        Raises:
            ConfigError: The schedule does not fit the system.
        """

        def ended(variant: ScheduleSpec) -> LayerRun:
            run = self.start(variant, logging=logging)
            run.engine.run()
            return run

        # The earliest of equals; only the best and the one that runs are in memory.
        return min(map(ended, schedule.variants()), key=lambda run: run.engine.now_ps)

    def best(self, schedule: ScheduleSpec) -> ScheduleSpec:
        """Returns the fastest variant of a schedule, which ``run`` runs; the schedule itself if it has no others.

        Raises:
            ConfigError: The schedule does not fit the system.
        """
        return self.run(schedule).schedule if len(schedule.best_of) > 1 else schedule

    def engine(self, schedule: ScheduleSpec, exposure: Exposure = Exposure()) -> Engine:  # noqa: B008 (frozen)
        """Returns the engine of ``start``."""
        return self.start(schedule, exposure).engine


class Starter:
    """Starts layers of any routing under one schedule on one system; what they share is worked out once."""

    def __init__(
        self,
        system: SystemSpec,
        layer: LayerSpec,
        schedule: ScheduleSpec,
        *,
        exposure: Exposure = Exposure(),  # noqa: B008 (frozen)
        compute_scale: float = 1.0,
        resolution: str = "token",
        logging: bool = False,
    ) -> None:
        """Works out costs and program.

        Args:
            system: The machine.
            layer: The layer.
            schedule: How it is run.
            exposure: Which decisions are asked rather than ruled.
            compute_scale: Multiplies GEMM and HBM time.
            resolution: What moves as one segment: ``token``, a vector on all planes together; ``packet``, a packet on
                the plane its address hashes to, some hundred times slower. The lower bound is the same for both.
            logging: Whether every use of a link, reduction unit and SM group is recorded (``engine.state.log``).

        Raises:
            ConfigError: The schedule does not fit the system, or there is no such resolution.
        """
        costs = Costs.of(system, layer, compute_scale, resolution)
        self._offer = Offer(system, layer, costs, _lower_bound(system, costs, layer), schedule, exposure, {})
        self._logging = logging

    def start(self, workload: Workload) -> LayerRun:
        """Returns a layer at time zero, or before it if something is asked there.

        Raises:
            ConfigError: The workload is too large for exact integer time, or the schedule's planner needs what it does
                not have.
        """
        return LayerRun(self._offer, workload, self._offer.bound_of(workload), logging=self._logging)


def _lower_bound(system: SystemSpec, costs: Costs, layer: LayerSpec) -> LowerBound:
    """Returns what bounds workloads of a layer, which is worked out by the token at any resolution."""
    by_token = costs if costs.resolution == "token" else Costs.of(system, layer, costs.compute_scale)
    return LowerBound(system, layer, by_token)


def simulate(
    system: SystemSpec,
    workload: Workload,
    schedule: ScheduleSpec,
    *,
    compute_scale: float = 1.0,
    resolution: str = "token",
    logging: bool = False,
) -> LayerRun:
    """Returns a layer run to its end under the schedule's own rule; see ``Starter`` and ``Problem.run``."""
    problem = Problem.of(system, workload, compute_scale=compute_scale, resolution=resolution)
    return problem.run(schedule, logging=logging)
