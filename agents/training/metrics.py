"""What is recorded while training: finished episodes, and TensorBoard files."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter
from torch.utils.tensorboard import SummaryWriter

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

    def __init__(self, reference: str) -> None:
        """``reference`` is the name under which ratios to the environments' reference schedule are recorded."""
        self._reference = reference
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
        return {**means, f"rollout/ratio_to_{self._reference}": float(np.exp(relative.mean()))}


class TensorBoard(KVWriter):
    """Writes records as TensorBoard scalars."""

    def __init__(self, folder: Path, forget_after: int | None = None) -> None:
        """Starts an event file in a run folder; ``forget_after`` hides what earlier ones say of later decisions."""
        purge_step = None if forget_after is None else forget_after + 1
        self._writer = SummaryWriter(log_dir=str(folder), purge_step=purge_step)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Writes scalars at a step."""
        for name, value in key_values.items():
            if isinstance(value, (int, float, np.number)) and "tensorboard" not in (key_excluded[name] or ()):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()
