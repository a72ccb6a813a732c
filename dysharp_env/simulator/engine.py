"""The Python face of the compiled engine: start a layer, answer its decisions, read its result."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.simulator.costs import Bound
from dysharp_env.simulator.kernel.loop import advance
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import ASK, DONE, GROW, RUN, STUCK
from dysharp_env.simulator.state.lowering import Lowering
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, FEATURES, ShownByName
from dysharp_env.simulator.state.records import ARRAYS, NOBODY, ROOT
from dysharp_env.simulator.state.state import CONSTANT_ARRAYS, Seat, State, bind, point, reseat
from dysharp_env.workload.workload import Workload


@dataclass(frozen=True)
class Decision(ShownByName):
    """A decision that waits for an answer.

    Attributes:
        kind: One of ``DECISION_KINDS``, as an index.
        gpu: The GPU whose SM group or sizes are decided; 0 for the first ``split``, which is for all.
        num_candidates: Rows of ``features`` and ``mask`` in use.
        features: (max_candidates, feature) float32, owned by the engine and overwritten by the next decision.
        context: (context,) float32, likewise.
        mask: (max_candidates,) bool, likewise.
    """

    kind: int
    gpu: int
    num_candidates: int
    features: np.ndarray
    context: np.ndarray
    mask: np.ndarray


def masked(choice: int, mask: np.ndarray) -> ValueError:
    """Returns the mistake of choosing a row that the mask, (max_candidates,) bool, does not allow."""
    return ValueError(f"action {choice} is masked; legal actions are {np.flatnonzero(mask).tolist()}")


@cache
def state_format() -> str:
    """Returns a digest of what gives the numbers of a state their meaning: records, names of arrays and codes."""
    numbers = sorted((name, value) for name, value in vars(codes).items() if isinstance(value, int))
    text = repr((ROOT, ARRAYS, FEATURES, CONTEXT, DECISION_KINDS, numbers))
    return hashlib.sha256(text.encode()).hexdigest()


class Engine:
    """One simulated layer. Time runs only inside ``advance``, or with others' in ``Batch.advance``.

    It can be cloned, copied and pickled at any time between two calls, and a copy plays on as this one would have.
    """

    def __init__(self, lowering: Lowering, workload: Workload, bound: Bound) -> None:
        """Sets the layer up; see ``Lowering.lower``."""
        self.workload, self.costs, self.program = workload, lowering.costs, lowering.program
        self.state: State = lowering.lower(workload, bound)

    @property
    def now_ps(self) -> int:
        """The simulated time."""
        return int(self.state.root["now_ps"][0])

    @property
    def decisions(self) -> int:
        """Decisions with more than one legal answer so far, whoever took them."""
        return int(self.state.root["decisions"][0])

    @property
    def asked(self) -> int:
        """Decisions answered from outside, or by the program's network, so far."""
        return int(self.state.root["asked"][0])

    @property
    def status(self) -> int:
        """What it is at: ``RUN``, ``ASK`` (a decision waits), ``DONE``."""
        return int(self.state.root["status"][0])

    @property
    def done(self) -> bool:
        """Whether every token is combined."""
        return self.status == DONE

    def advance(self) -> Decision | None:
        """Runs to the next exposed decision and returns it, or None when the layer is done.

        Raises:
            RuntimeError: Nothing can happen any more although tokens are left; the program cannot be run.
        """
        if self.status == ASK:
            raise RuntimeError("a decision waits for its answer; call decide first")
        advance(self.state.root, NOBODY)
        self.settle()
        if self.done:
            return None
        control = self.state.root[0]
        return Decision(
            int(control["pending_kind"]),
            int(control["pending_gpu"]),
            int(control["num_candidates"]),
            self.state.features,
            self.state.context,
            self.state.mask,
        )

    def settle(self) -> None:
        """Gives the layer more room and runs it on, as often as it wants that.

        Raises:
            RuntimeError: Nothing can happen any more although tokens are left; the program cannot be run.
        """
        while self.status == GROW:
            self.state = _with_room(self.state)
            self.state.root["status"] = RUN
            advance(self.state.root, NOBODY)
        if self.status == STUCK:
            left = int(self.state.root["tokens_left"][0])
            raise RuntimeError(f"the schedule is stuck at {self.now_ps} ps with {left} tokens not combined")

    def move(self, seat: Seat) -> None:
        """Goes on in another seat, with all that is in this one."""
        self.state = reseat(self.state, seat)

    def decide(self, choice: int) -> None:
        """Answers the waiting decision with the row of a legal candidate; time does not move.

        Raises:
            ValueError: The row is masked.
            RuntimeError: No decision waits.
        """
        if self.status != ASK:
            raise RuntimeError("no decision waits")
        if not 0 <= choice < len(self.state.mask) or not self.state.mask[choice]:
            raise masked(choice, self.state.mask)
        self.state.root["choice"] = choice
        self.state.root["status"] = RUN

    def clone(self) -> Engine:
        """Returns a layer in the same state that goes its own way from here; a waiting decision waits in both.

        Costs a copy of the arrays that change, some hundred bytes for every (token, expert).
        """
        copies = {
            name: array if name in CONSTANT_ARRAYS else _copied(array) for name, array in vars(self.state).items()
        }
        copy = object.__new__(Engine)
        copy.workload, copy.costs, copy.program = self.workload, self.costs, self.program
        # The root holds the addresses of the arrays, so they are written anew.
        copy.state = bind(State(**copies))
        return copy

    def __copy__(self) -> Engine:
        return self.clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        return self.clone()

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is pickled: the arrays, but not where they lie."""
        root = _copied(self.state.root)
        point(root, [0] * len(ARRAYS))
        arrays = vars(self.state.having(root=root))
        return {**self.__dict__, "state": arrays, "format": state_format()}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        """Takes over what was pickled.

        Raises:
            ConfigError: It is of a version whose arrays hold something else.
        """
        if saved.get("format") != state_format():
            raise ConfigError(
                "the pickled layer is of another version of the engine, whose state is laid out otherwise"
            )
        self.workload, self.costs, self.program = saved["workload"], saved["costs"], saved["program"]
        # Arrays of its own: what is loaded may be read-only, or the very memory of the original (PEP 574).
        self.state = bind(State(**{name: _copied(array) for name, array in saved["state"].items()}))

    def follow_rule(self) -> None:
        """Leaves the waiting decision, and all that come, to the program's rule; time does not move."""
        self.state.root["answerers"]["exposed"] = 0
        if self.status == ASK:
            self.state.root["status"] = RUN

    def run(self) -> Engine:
        """Runs to the end under the program's own rules and returns itself.

        Raises:
            RuntimeError: The program exposes a decision.
        """
        if self.advance() is not None:
            raise RuntimeError("the program exposes decisions; answer them, or run a program that exposes none")
        return self


def _copied(array: np.ndarray) -> np.ndarray:
    """Returns a copy; of records as bytes, for numpy copies them field by field, ten times as slowly."""
    return array.view(np.uint8).copy().view(array.dtype) if array.dtype.names else array.copy()


def _with_room(state: State) -> State:
    """Returns the state with room for twice as many events and log rows; everything else is shared."""
    log = _twice(state.log) if state.root["logging"][0] else state.log
    return bind(state.having(heap=_twice(state.heap), pool=_twice(state.pool), log=log))


def _twice(array: np.ndarray) -> np.ndarray:
    """Returns a copy of records with as many of zeros behind it, as bytes likewise."""
    grown = np.zeros(2 * len(array), array.dtype)
    grown.view(np.uint8)[: array.nbytes] = array.view(np.uint8)
    return grown
