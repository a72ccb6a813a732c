"""A model card for the Hugging Face hub from a run folder: text with a YAML head, written from what was measured.

The head follows huggingface.co/docs/hub/model-cards: tags, and a ``model-index`` with a metric for each result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dysharp_env.config import ConfigError
from dysharp_env.files import read_mapping

from ..evaluation.statistics import geometric_mean
from ..policies.card import PolicyCard, read_card
from .held_out import describe_validation
from .provenance import processes_of
from .run_folder import RunFolder
from .spec import TrainSpec, describe_result, read_spec
from .validation import EVALUATION_COLUMNS

_ENV = "DySHARP/TokenSchedule-v2"
_NEEDED = ("policy", "against", "geomean_ratio", "ci_low", "ci_high", "mean_ratio_to_bound", "workloads")


@dataclass(frozen=True)
class Measured:
    """How fast a policy is on some workloads.

    Attributes:
        on: What they are.
        against: The schedule that makespans are divided by.
        ratio: Geometric mean of makespan over that schedule's, with ``low`` and ``high``, its 95 % interval.
        to_bound: Mean makespan over lower bound.
        workloads: How many there are.
    """

    on: str
    against: str
    ratio: float
    low: float
    high: float
    to_bound: float
    workloads: int

    def row(self) -> str:
        """Returns a line of the card's table."""
        interval = f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f})"
        return f"| {self.on} | {self.workloads} | `{self.against}` | {interval} | {self.to_bound:.3f} |"

    def entry(self) -> dict[str, Any]:
        """Returns a result of the head's ``model-index``."""
        metrics = [
            {"type": "makespan_ratio", "name": f"makespan over {self.against}", "value": round(self.ratio, 4)},
            {"type": "makespan_over_bound", "name": "makespan over lower bound", "value": round(self.to_bound, 4)},
        ]
        return {
            "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
            "dataset": {"type": _ENV, "name": self.on},
            "metrics": metrics,
        }


def card_text(folder: RunFolder, results: Sequence[str] = ()) -> str:
    """Returns the card of a finished or interrupted run.

    Args:
        folder: The run.
        results: JSON files of ``python -m agents.evaluate``; the run's own ``evaluation.json`` is read besides.

    Raises:
        ConfigError: There is no policy yet, or a file is damaged or does not tell of the run.
    """
    spec, card = read_spec(folder), read_card(folder.best)
    own = folder.path / "evaluation.json"
    files = [Path(name) for name in results] + ([own] if own.is_file() else [])
    measured = [_validated(folder, spec), *(each for path in files for each in _evaluated(path, spec.name))]
    head = {
        "library_name": "dysharp-env",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["reinforcement-learning", "gymnasium", "mixture-of-experts", "scheduling", _ENV],
        "model-index": [{"name": spec.name, "results": [each.entry() for each in measured]}],
    }
    top = yaml.safe_dump(head, sort_keys=False, width=120, allow_unicode=True)
    return f"---\n{top}---\n\n{_body(folder, spec, card, measured)}"


def _validated(folder: RunFolder, spec: TrainSpec) -> Measured:
    """Returns the best validation of a run.

    Raises:
        ConfigError: There is none, or the table is damaged.
    """
    rows = folder.read_rows("evaluations.csv", EVALUATION_COLUMNS)
    if not rows:
        raise ConfigError(f"'{folder.path}' has no validation yet")
    bound, reference = (EVALUATION_COLUMNS.index(f"ratio_to_{name}") for name in ("bound", "reference"))
    by_decisions: dict[int, list[list[str]]] = {}
    for row in rows:
        by_decisions.setdefault(int(row[0]), []).append(row)
    best = min(by_decisions.values(), key=lambda some: float(np.mean([float(row[bound]) for row in some])))
    logs = np.log([[float(row[reference]) for row in best]])
    to_bound = float(np.mean([float(row[bound]) for row in best]))
    what = describe_validation(spec).removeprefix("validates on ")
    return Measured(f"validation: {what}", spec.reference, *geometric_mean(logs, 0), to_bound, len(best))


def _evaluated(path: Path, name: str) -> list[Measured]:
    """Returns what a result of ``agents.evaluate`` says of a run.

    Raises:
        ConfigError: It is damaged, or says nothing of it.
    """
    data = read_mapping(path)
    lines = [line for line in data.get("summary", []) if isinstance(line, dict) and line.get("policy") == name]
    others = [line for line in lines if line.get("against") != name]
    if not others or any(key not in line for line in others for key in _NEEDED):
        raise ConfigError(f"'{path}' is no result of agents.evaluate with policy '{name}'")
    suite = (data.get("config") or {}).get("suite") or {}
    on = f"suite {suite.get('name', path.stem)}"
    numbers = [[line[key] for key in _NEEDED[1:]] for line in others]
    return [Measured(on, *each) for each in numbers]


def _body(folder: RunFolder, spec: TrainSpec, card: PolicyCard, measured: Sequence[Measured]) -> str:
    """Returns the card below its head."""
    meta, env, command = folder.read_meta(), spec.env, folder.path / "command.txt"
    processes = processes_of(meta, folder.path)
    if env.suite:
        trained_on, example = f"suite `{env.suite}`", ""
    else:
        trained_on = f"`{env.model}` on `{env.system}`, {env.tokens} tokens per GPU, routing `{env.routing}`"
        scenario = f'system="{env.system}", model="{env.model}", routing="uniform", tokens=256'
        example = f"result = agent.schedule({scenario})\nprint(result.makespan_us, result.result.ratio)\n"
    commands = command.read_text(encoding="utf-8").strip() if command.is_file() else ""
    finished = describe_result(folder) if meta.get("finished") else f"{card.decisions:,} decisions, not finished"
    return _TEXT.format(
        name=spec.name,
        env=_ENV,
        trainer=spec.trainer,
        schedule=spec.env.schedule,
        exposed=", ".join(spec.env.exposed),
        trained_on=trained_on,
        rows="\n".join(each.row() for each in measured),
        example=example,
        commands=commands or f"python -m agents.train --config {spec.name}.yaml",
        finished=finished,
        version=", ".join(dict.fromkeys(str(each.get("version", "unknown")) for each in processes)) or "unknown",
        config=spec.to_yaml().rstrip(),
    )


_TEXT = """\
# {name}

A policy that schedules Mixture-of-Experts layers on NVSwitch systems, in the simulator of dysharp_env. Of the decisions
in `{env}` it takes those of kind {exposed}, on top of schedule `{schedule}`, which takes the rest.
Trained by {trainer} on {trained_on}.

## Use

```bash
pip install 'dysharp-env[agents]'
```

Download this repository into a folder `FOLDER`; loading it executes no pickle.

```python
from dysharp_agents import load_agent

agent = load_agent("FOLDER")
{example}```

`python -m dysharp_env compare --schedule dysharp --schedule FOLDER` plays it beside hand-designed schedules.

## Results

Makespans are simulated. A ratio is the geometric mean of the policy's makespan over the other schedule's on the same
workload, with a 95 % bootstrap interval over workloads; below 1 is faster. No schedule can be below 1 of the bound.

| workloads | number | against | makespan ratio (95 %) | mean makespan / lower bound |
|---|---|---|---|---|
{rows}

The validation workloads chose the best policy of the run, so their row is optimistic. {finished}.

## Limitations

- All times are a model's, not measurements; dynamic multimem, where the schedule uses it, is proposed hardware.
- The policy has seen the machines, models and batch sizes that it was trained on. On others it plays, and nothing is
  promised.
- One training seed is one sample: compare several before drawing conclusions.

## Training

Version {version} of dysharp_env:

```bash
{commands}
```

```yaml
{config}
```
"""
