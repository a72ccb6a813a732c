"""The twin itself: puts a layer together, runs its story, and asks."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.faults import LATE_GPU
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state.codes import EV_EARLY, EV_GATE
from dysharp_env.simulator.state.observation import FEATURES, SPLIT
from dysharp_env.simulator.twin.combine import CombineGroup
from dysharp_env.simulator.twin.dispatch import DispatchGroup
from dysharp_env.simulator.twin.gpu import Gpu
from dysharp_env.simulator.twin.parts import Candidate, Decision, Hold
from dysharp_env.simulator.twin.phases import END, Phases
from dysharp_env.simulator.twin.routing import Routing
from dysharp_env.simulator.twin.shown import Shown, scores_of
from dysharp_env.simulator.twin.staffing import Group
from dysharp_env.simulator.twin.switch import Switch
from dysharp_env.simulator.twin.weights import Mover, copies_of, gradients_ps
from dysharp_env.simulator.twin.world import EVERYTHING, Progress, World
from dysharp_env.workload.workload import Workload

RULED = FEATURES.index("ruled")


class Twin:
    """One simulated layer, with the engine's interface. Time runs only inside ``advance``.

    Attributes:
        tokens, experts, copies, gpus: What the layer is made of; times are in tokens, in the experts' tiles and in
            copies.
        log: Every use of a link, reduction unit and SM group.
    """

    def __init__(self, workload: Workload, costs: Costs, program: Program, num_sms: int, bound: Bound) -> None:
        """Sets the layer up; times are compared with the bound in what decisions show."""
        costs = costs.under(program.dispatch, program.combine, program.families)
        self.world = world = World(workload, costs, program, num_sms, bound)
        routing, switch = Routing(world), Switch(world)
        self.tokens, self.experts, self.log = routing.tokens, routing.experts, world.log
        world.phases = Phases(costs, program, num_sms, routing.tokens, gradients_ps(world))
        world.shared_end_ps = world.phases.shared_end_ps(world.num_gpus)
        world.start_ps = [0] * world.num_gpus
        everywhere: list[Progress] = []
        dispatches: list[DispatchGroup] = []
        combines: list[CombineGroup] = []
        movers: list[Mover] = []
        self.copies = copies_of(world)
        self.gpus = [
            Gpu(world, number, switch, everywhere, routing, self.copies, movers, dispatches, combines)
            for number in range(world.num_gpus)
        ]
        self.shown = Shown(world, self.gpus)
        self._pay_start(everywhere)
        self._story = self._tell()
        self._answer: int | None = None
        self._waiting: Decision | None = None

    @property
    def now_ps(self) -> int:
        """The simulated time."""
        return self.world.clock.now_ps

    def _pay_start(self, everywhere: list[Progress]) -> None:
        """Opens the layer once its start is paid for: everywhere, or on the late GPU later than on the others."""
        world = self.world
        gpus, late_ps, meets = range(world.num_gpus), world.costs.faults.late_ps, world.program.meets
        paid_ps = world.phases.pay_ps(EVERYTHING, 0, gpus)
        own_late_ps = [late_ps if gpu == LATE_GPU else 0 for gpu in gpus]
        opens_ps = [paid_ps + (late_ps if meets else own_ps) for own_ps in own_late_ps]
        if late_ps:
            world.start_ps = opens_ps
        world.fetches_from_ps = [paid_ps - world.program.early_ps + own_ps for own_ps in own_late_ps]
        punctual = [gpu for gpu in gpus if opens_ps[gpu] == min(opens_ps)]
        late = [gpu for gpu in gpus if gpu not in punctual]

        def open_on(those: list[int]) -> None:
            if those is punctual and late:
                world.clock.at(opens_ps[late[0]], EV_GATE, open_on, late)
            for gpu in those:
                everywhere[gpu].begin()

        world.clock.at(min(opens_ps), EV_GATE, open_on, punctual)

    def _fetch_early(self, late: bool) -> None:
        for gpu in self.gpus:
            if (gpu.number == LATE_GPU and self.world.costs.faults.late_ps > 0) == late:
                gpu.prefetch.wake()

    def _tell(self) -> Generator[Decision, Any, None]:
        """Runs the layer: all events of an instant are served, then the groups they concern act."""
        world = self.world
        # One split for all GPUs before the layer starts.
        split = (yield from self._choose(SPLIT, self.gpus[0], world.splits)) if world.splits else None
        if world.program.early_ps:
            world.clock.at(world.fetches_from_ps[-1], EV_EARLY, self._fetch_early, False)
            if world.costs.faults.late_ps:
                world.clock.at(world.fetches_from_ps[LATE_GPU], EV_EARLY, self._fetch_early, True)
        for gpu in self.gpus:
            gpu.start(split)
        while True:
            while world.marked:
                group: Group = world.marked.popleft()
                # The mark goes before the group acts: what it does may give it more to do.
                group.is_marked = False
                while options := group.act():
                    chosen = yield from self._choose(group.kind, self.gpus[group.gpu], options, group.may_hold())
                    if isinstance(chosen, Hold):
                        group.holds = True
                    else:
                        group.take(chosen)
            # Where no token has an expert, the layer is over once it has opened.
            if world.tokens_left == 0 and world.matrices_left == 0 and self.gpus[0].progress.has_begun:
                world.clock.now_ps += world.phases.pay_ps(END, 0, range(world.num_gpus))
                return
            if not world.clock.serve_instant():
                raise RuntimeError(
                    f"the schedule is stuck at {self.now_ps} ps with {world.tokens_left} tokens not combined"
                )

    def _choose(
        self, kind: int, gpu: Gpu, options: Sequence[Candidate], may_hold: bool = False
    ) -> Generator[Decision, int, Any]:
        """Returns the chosen candidate; one legal answer is taken without asking."""
        program = self.world.program
        shows_hold = kind in program.may_hold
        candidates = list(options[: program.max_candidates - shows_hold])
        num_legal = len(candidates) + (shows_hold and may_hold)
        if shows_hold:
            candidates.append(Hold())
        if num_legal == 1:
            return candidates[0]
        features, context = self.shown.features(gpu, candidates), self.shown.context(gpu, kind)
        ruled = self._best_by_rule(kind, features[:num_legal])
        features[ruled, RULED] = 1
        if kind in program.exposed:
            mask = np.arange(program.max_candidates) < num_legal  # hold comes last
            row = yield Decision(kind, gpu.number, features, context, mask, candidates)
        elif program.network and kind in program.networked:
            row = int(scores_of(program.network, features[: len(candidates)], context)[:num_legal].argmax())
        else:
            row = ruled
        self.world.decisions += 1
        return candidates[row]

    def _best_by_rule(self, kind: int, features: np.ndarray) -> int:
        """Returns the row with the highest score, the first of equals; a rule without weights takes the first."""
        scores = [0.0] * len(features)
        for row, shown in enumerate(features):
            for weight, feature in zip(self.world.program.weights[kind], shown, strict=True):
                scores[row] += float(weight) * float(feature)
        return scores.index(max(scores))

    def advance(self) -> Decision | None:
        """Runs to the next exposed decision and returns it, or None when the layer is done.

        Raises:
            RuntimeError: Nothing can happen any more although tokens are left; the program cannot be run.
        """
        if self._waiting is not None:
            raise RuntimeError("a decision waits for its answer; call decide first")
        try:
            self._waiting = self._story.send(self._answer)
        except StopIteration:
            return None
        return self._waiting

    def decide(self, choice: int) -> None:
        """Answers the waiting decision with the row of a legal candidate; time does not move.

        Raises:
            ValueError: The row is masked.
            RuntimeError: No decision waits.
        """
        if self._waiting is None:
            raise RuntimeError("no decision waits")
        if not 0 <= choice < len(self._waiting.mask) or not self._waiting.mask[choice]:
            legal = np.flatnonzero(self._waiting.mask).tolist()
            raise ValueError(f"action {choice} is masked; legal actions are {legal}")
        self._answer, self._waiting = choice, None

    def run(self) -> Twin:
        """Runs to the end under the program's own rules and returns itself.

        Raises:
            RuntimeError: The program exposes a decision.
        """
        if self.advance() is not None:
            raise RuntimeError("the program exposes decisions; answer them, or run a program that exposes none")
        return self
