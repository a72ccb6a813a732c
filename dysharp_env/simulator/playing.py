"""Players: a network that plays the copies of a batch so that somebody can learn from it, with no Python per decision.

Each copy has a player with room for so many decisions. What a decision showed and what was done about it is kept in
arrays, a row of decisions for each copy, so that copies can be played one after the other or by several threads.
kernel/playing.py does the arithmetic.
"""

from __future__ import annotations

import numpy as np

from dysharp_env.simulator.kernel.playing import choose_once, settle_once
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import NUM_CONTEXT, NUM_FEATURES
from dysharp_env.simulator.state.records import NETWORK_ROWS, PLAYER


class Players:
    """A player for each copy of a batch, and what they keep.

    Attributes:
        records: (copy,) PLAYER, as the engine reads them.
        candidates: (copy, room, max_candidates * feature) float32, what decisions showed.
        contexts: (copy, room, context) float32, likewise.
        masks: (copy, room, max_candidates) bool, likewise.
        counts: (copy, room) int64, rows that they filled.
        actions: (copy, room) int64, the rows chosen.
        log_probs: (copy, room) float32, logarithms of the probabilities that they had.
        rewards: (copy, room) float32, what environments give for them.
        starts: (copy, room) float32, 1 where an episode began with the decision.
        taken: (copy,) int64, decisions kept.
        starting: (copy,) int64, 1 where an episode begins with the next decision.
        length: (copy,) int64, decisions of the present episode so far, and ``total`` (copy,) float64, their rewards.
    """

    def __init__(self, features: np.ndarray, context: np.ndarray, mask: np.ndarray, room: int) -> None:
        """Makes players that read what decisions show from the arrays of a batch, which must stay where they are.

        Args:
            features: (copy, max_candidates, feature) float32.
            context: (copy, context) float32.
            mask: (copy, max_candidates) bool.
            room: Decisions that each can keep.
        """
        copies, size = mask.shape
        self.records = np.zeros(copies, PLAYER)
        self.candidates = np.zeros((copies, room, size * NUM_FEATURES), np.float32)
        self.contexts = np.zeros((copies, room, NUM_CONTEXT), np.float32)
        self.masks = np.zeros((copies, room, size), np.bool_)
        self.actions, self.counts = (np.zeros((copies, room), np.int64) for _ in range(2))
        self.log_probs, self.rewards, self.starts = (np.zeros((copies, room), np.float32) for _ in range(3))
        self._scores = np.zeros((copies, size))
        self.taken, self.starting = self.records["taken"], self.records["starts"]
        self.length, self.total = self.records["length"], self.records["total"]
        self._held: dict[str, np.ndarray] = {}  # what the records hold addresses of and nothing else does
        self._point(features_at=features, context_at=context, mask_at=mask, scores_at=self._scores)
        self._point(kept_candidates_at=self.candidates, kept_contexts_at=self.contexts, kept_masks_at=self.masks)
        self._point(
            counts_at=self.counts, actions_at=self.actions, log_probs_at=self.log_probs, rewards_at=self.rewards
        )
        self._point(starts_at=self.starts)
        self.records["room"], self.records["max_candidates"] = room, size

    def _point(self, **arrays: np.ndarray) -> None:
        """Writes where each copy's row of an array begins into the record's field of that name."""
        for name, array in arrays.items():
            assert array.flags.c_contiguous and len(array) == len(self.records), name
            self.records[name] = array.ctypes.data + array.strides[0] * np.arange(len(array))
        self._held |= arrays

    def begin(self, copy: int | None = None) -> None:
        """Says that an episode begins with a copy's next decision, or with every copy's."""
        players = self.records[copy if copy is not None else slice(None)]
        players["starts"] = 1
        players["length"] = players["total"] = 0

    def equip(self, network: Network, uniforms: np.ndarray, opening: Network | None = None) -> None:
        """Gives players a network and the numbers that they choose by, and room again.

        Args:
            network: What scores candidates.
            uniforms: (copy, room) float64 in [0, 1), one for each decision.
            opening: What does so before layers start; None: the same.
        """
        self._network, self._opening = network, opening or network
        size, width = self.masks.shape[2], max(self._network.width, self._opening.width)
        scratch = np.zeros((len(self.records), (size + NETWORK_ROWS) * width + NUM_FEATURES), np.float32)
        self._point(uniforms_at=np.ascontiguousarray(uniforms), scratch_at=scratch)
        self._give(self.records, network)
        self.taken[:] = 0

    def _give(self, players: np.ndarray, network: Network) -> None:
        players["network_at"], players["network_width"] = network.numbers.ctypes.data, network.width
        for name, place in network.places.items():
            players["places"][name] = place

    def choose(self, copy: int, *, early: bool = False) -> int:
        """Takes the decision that the batch's arrays show for a copy and returns the chosen row.

        Args:
            copy: Whose decision it is.
            early: Whether it comes before the layer starts.
        """
        player = self.records[copy : copy + 1]
        if early:
            self._give(player, self._opening)
        choice = int(choose_once(player))
        self._give(player, self._network)
        return choice

    def settle(self, copy: int, now_ps: int) -> None:
        """Rewards a copy's last choice for the time up to now, if that is still owed."""
        settle_once(self.records[copy : copy + 1], now_ps)
