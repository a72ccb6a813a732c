"""A stranger's walk: what vLLM answered, a machine file of one's own, and five commands to a tuned schedule."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from agents import tune
from dysharp_env.__main__ import main
from tests.workload.routing_files import random_ids, vllm_response, write_json

MODEL = ["--model", "qwen3-30b"]
LAYER = ["--system", "my-node.yaml", *MODEL, "--routing", "mine.npz"]


def test_from_a_response_to_a_tuned_schedule_in_five_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ids = random_ids(600, layers=2, experts=128, k=8)
    write_json(tmp_path / "response.json", vllm_response(ids, prompt=400))

    assert main(["trace", "import", "response.json", "--out", "mine.npz", *MODEL]) == 0
    assert main(["new", "system", "my-node", "--from", "dgx-h100"]) == 0
    # The template is the preset until somebody changes it.
    system = yaml.safe_load(Path("my-node.yaml").read_text(encoding="utf-8"))
    text = Path("my-node.yaml").read_text(encoding="utf-8")
    Path("my-node.yaml").write_text(text.replace("num_gpus: 8", "num_gpus: 4"), encoding="utf-8")
    assert system["num_gpus"] == 8
    compare = ["compare", *LAYER, "--tokens", "16", "--schedule", "deepep", "--schedule", "mega-moe"]
    assert main([*compare, "--hardware", "today", "--report", "compared", "--json", "compared.json"]) == 0
    few = ["--minutes", "0.02", "--train", "1", "--validation", "1", "--test", "1", "--quiet"]
    assert tune.main([*LAYER, "--tokens", "16", "--hardware", "today", *few, "--out", "tuned", "--report", "page"]) == 0
    played = ["simulate", *LAYER, "--tokens", "16", "--hardware", "today", "--schedule", "tuned"]
    assert main([*played, "--picture", "tuned.png", "--timeline", "tuned.json.gz", "--json", "tuned.json"]) == 0

    with np.load("mine.npz") as trace:
        assert np.array_equal(trace["topk_ids"], ids)
    runs = {run["schedule"]: run for run in json.loads(Path("compared.json").read_text())["runs"]}
    assert set(runs) == {"deepep", "mega-moe"}
    assert json.loads(Path("compared.json").read_text())["config"]["system"]["num_gpus"] == 4
    (mine,) = json.loads(Path("tuned.json").read_text())["runs"]
    assert mine["lower_bound_us"] <= mine["makespan_us"] < runs["deepep"]["makespan_us"]
    assert Path("tuned.png").read_bytes()[:4] == b"\x89PNG" and Path("tuned.json.gz").stat().st_size > 1000
    assert {"schedule.yaml", "schedule.h", "report.md", "tasks"} <= {path.name for path in Path("tuned").iterdir()}
    for page in ("compared", "page"):
        assert "my-node" in Path(page, "index.html").read_text(encoding="utf-8")
    assert "error" not in capsys.readouterr().err
