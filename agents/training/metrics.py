"""What is recorded of the episodes that training plays."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

EPISODE_COLUMNS = (
    "decisions",
    "workload",
    "return",
    "episode_decisions",
    "makespan_us",
    "ratio_to_bound",
    "ratio_to_reference",
    "wall_s",
)
_RECENT_EPISODES = 32


class EpisodeRecorder:
    """Notes every finished episode."""

    def __init__(self) -> None:
        """Begins with none."""
        self._rows: list[tuple[object, ...]] = []
        self._recent: deque[dict[str, Any]] = deque(maxlen=_RECENT_EPISODES)
        self._started = time.perf_counter()

    def note(self, decisions: int, info: dict[str, Any]) -> None:
        """Notes an episode that ended when training was so many decisions old, by the info of its last step."""
        final, episode = info["final_info"], info["episode"]
        of_episode = info["workload"], episode["r"], episode["l"], final["makespan_us"], final["ratio"]
        relative = final["makespan_us"] / info["reference_us"]
        wall_s = round(time.perf_counter() - self._started, 3)
        self._rows.append((decisions, *of_episode, relative, wall_s))
        self._recent.append(dict(zip(EPISODE_COLUMNS, self._rows[-1], strict=True)))

    def take_rows(self) -> list[tuple[object, ...]]:
        """Returns the episodes since the last call, as lines of ``episodes.csv``."""
        rows, self._rows = self._rows, []
        return rows

    def recent(self, name: str) -> float:
        """Returns the mean of a column over the last episodes; nan before the first."""
        return float(np.mean([episode[name] for episode in self._recent])) if self._recent else float("nan")

    def means(self) -> dict[str, float]:
        """Returns means over the last episodes under their TensorBoard names; empty before the first."""
        if not self._recent:
            return {}
        means = {f"rollout/{name}": self.recent(name) for name in ("return", "ratio_to_bound", "episode_decisions")}
        relative = np.log([episode["ratio_to_reference"] for episode in self._recent])
        return {**means, "rollout/ratio_to_reference": float(np.exp(relative.mean()))}
