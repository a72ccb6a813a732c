"""Damaged run folders: every one is refused in one line that names the file, and left as it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from agents import demo, evaluate
from agents.train import main
from agents.training.checkpoint import SUMS
from agents.training.run_folder import RunFolder
from agents.training.spec import read_spec
from dysharp_env.config import ConfigError
from dysharp_env.simulator.state.observation import FEATURES

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    settings = ["total_decisions=1024", "eval_every_decisions=1024"]
    options = [word for setting in settings for word in ("--set", setting)]
    assert main(["--config", "smoke", "--run-dir", str(root), *options, "--quiet"]) == 0
    (path,) = root.iterdir()
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def earlier(run: Path) -> Path:
    """The run as earlier versions left one: a single checkpoint, no checksums, the best policy in one place."""
    shutil.rmtree(run / "checkpoints" / "0")
    last = run / "checkpoints" / "1024"
    shutil.rmtree(last / "best")
    (last / "config.yaml").unlink()
    (last / SUMS).unlink()
    for folder in (run / "best", last):
        set_keys(sha256=None)(folder / "policy.json")
    return run


def write(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content)


def replace(old: str, new: str) -> Damage:
    def damage(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


def set_keys(**values: object) -> Damage:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def set_hidden(hidden: int) -> Damage:
    return lambda path: set_keys(policy={"hidden": hidden, "value_hidden": 16, "hold_reluctance": 4.0})(path)


def change_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Damage:
    def damage(path: Path) -> None:
        tensors = load_file(path)
        changed = change(tensors.pop(name))
        save_file(tensors if changed is None else {**tensors, name: changed}, path)

    return damage


def drop_setting(dotted: str) -> Damage:
    def damage(path: Path) -> None:
        config = yaml.safe_load(path.read_text())
        *parents, leaf = dotted.split(".")
        level = config
        for parent in parents:
            level = level[parent]
        del level[leaf]
        path.write_text(yaml.safe_dump(config))

    return damage


def fill(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.full_like(tensor, value)


DEEP = b'{"a":' + b"[" * 100_000
POLICY_DAMAGE: list[tuple[str, Damage, str]] = [
    ("policy.safetensors", write(b"short"), "policy.safetensors' is damaged"),
    ("policy.safetensors", change_tensor("scorer.score.weight", fill(float("nan"))), "numbers that are not finite"),
    ("policy.safetensors", change_tensor("scorer.score.weight", fill(float("inf"))), "numbers that are not finite"),
    ("policy.safetensors", change_tensor("critic.value.bias", torch.Tensor.double), "is torch.float64, not torch."),
    ("policy.safetensors", change_tensor("critic.value.bias", lambda _: None), "'critic.value.bias' has shape None"),
    ("policy.json", write(b"{"), "policy.json' is damaged: it is not JSON"),
    ("policy.json", write(DEEP), "policy.json' is damaged: it is not JSON"),
    ("policy.json", set_keys(features=["size", "size"]), "policy.json: features=['size', 'size']: names one twice"),
    ("policy.json", set_keys(context=["sennt"]), "policy.json' does not fit this version: context has no sennt"),
    (
        "policy.json",
        set_keys(format="dysharp/policy/2", features=15),
        "policy.json' is damaged: features is 15, not 17",
    ),
    ("policy.json", set_keys(format="dysharp/policy/9"), "has format 'dysharp/policy/9'; this version reads"),
    ("policy.json", set_keys(name="deepep"), "name='deepep': a run must have a name of its own"),
    ("policy.json", set_keys(env={"exposed": []}), "policy.json: env: exposed must name at least one decision kind"),
    ("policy.json", set_keys(env=None), "policy.json: env"),
    ("policy.json", set_hidden(100_000), "policy.hidden=100000"),
    ("policy.json", set_keys(validation_ratio=float("nan")), "validation_ratio"),
]
CHECKPOINT_DAMAGE: list[tuple[str, Damage, str]] = [
    ("optimizer.safetensors", write(b""), "optimizer.safetensors' is damaged"),
    (
        "optimizer.safetensors",
        change_tensor("1.exp_avg", lambda t: t[:1]),
        f"'1.exp_avg' has shape (1, {len(FEATURES)}), not ",
    ),
    ("optimizer.safetensors", change_tensor("1.exp_avg_sq", lambda _: None), "'1.exp_avg_sq' has shape None"),
    ("optimizer.safetensors", change_tensor("1.exp_avg_sq", fill(-1.0)), "'1.exp_avg_sq' holds negative numbers"),
    ("optimizer.safetensors", change_tensor("1.step", fill(float("nan"))), "'1.step' holds numbers that are not"),
    ("counters.json", Path.unlink, "counters.json': No such file or directory"),
    ("counters.json", set_keys(best_validation_ratio=float("nan")), "counters.json: best_validation_ratio"),
    ("counters.json", set_keys(decisions=512), "counters.json: decisions=512 must be the number of its folder"),
]
CONFIG_DAMAGE: list[tuple[str, Damage, str]] = [
    ("config.yaml", write(b"{}"), "config.yaml: key 'name' is missing"),
    ("config.yaml", drop_setting("seed"), "config.yaml: key 'seed' is missing"),
    ("config.yaml", drop_setting("env"), "config.yaml: key 'env' is missing"),
    ("config.yaml", replace("hidden:", "attention: true\n  hidden:"), "policy.attention=True is of an earlier version"),
    ("config.yaml", replace("smoke", "deepep"), "name='deepep': a run must have a name of its own"),
]
RUN_DAMAGE: list[tuple[str, Damage, str]] = [
    (table, damage, f"{table}' {message}")
    for table in ("episodes.csv", "evaluations.csv")
    for damage, message in (
        (write(b""), "is damaged: it is empty"),
        (write(b"\xff\xfe"), "is no text in UTF-8"),
        (replace("decisions", "decision"), "is damaged: its columns are"),
        (lambda path: path.write_text(path.read_text() + "many,w,1,1,1,1\n"), "is damaged: line "),
        (lambda path: path.write_text(path.read_text().rsplit(",", 1)[0] + ",fast\n"), "is damaged: line "),
    )
] + [
    ("command.txt", write(b"\xff\n"), "command.txt' is no text in UTF-8"),
    ("meta.json", write(DEEP), "meta.json' is damaged: it is not JSON"),
]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("place", "name", "damage", "message"),
    [("checkpoints/1024", *case) for case in POLICY_DAMAGE + CHECKPOINT_DAMAGE]
    + [("best", *case) for case in POLICY_DAMAGE]
    + [("", *case) for case in CONFIG_DAMAGE + RUN_DAMAGE],
)
def test_a_damaged_run_is_not_resumed_and_stays_as_it_is(
    earlier: Path, place: str, name: str, damage: Damage, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(earlier / place / name)
    before = content(earlier)
    assert main(["--resume", str(earlier), "--quiet", "--set", "total_decisions=2048"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert content(earlier) == before


@pytest.mark.parametrize(
    ("place", "name", "damage", "message"),
    [("best", *case) for case in POLICY_DAMAGE],
)
def test_a_damaged_run_is_not_evaluated(
    earlier: Path, place: str, name: str, damage: Damage, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(earlier / place / name)
    assert evaluate.main(["--suite", "smoke", "--policy", str(earlier)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err


def test_a_run_of_an_earlier_version_goes_on_with_defaults_for_what_is_new(run: Path) -> None:
    spec = read_spec(RunFolder(run))
    drop_setting("env.hold")(run / "config.yaml")
    drop_setting("imitation")(run / "config.yaml")
    replace("invalid_action: replace", "invalid_action: noop\n  max_invalid_actions: 1000")(run / "config.yaml")
    replace("invalid_penalty: 1.0", "invalid_penalty: 0.01")(run / "config.yaml")
    replace("hidden:", "attention: false\n  hidden:")(run / "config.yaml")
    assert read_spec(RunFolder(run)) == spec
    assert main(["--resume", str(run), "--quiet", "--set", "total_decisions=2048"]) == 0


def test_the_demo_refuses_a_finished_run_whose_result_is_damaged(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.rename(tmp_path / "smoke__0__x")
    config = tmp_path / "mine.yaml"
    shutil.copy(tmp_path / "smoke__0__x" / "config.yaml", config)
    set_keys(wall_s="long")(tmp_path / "smoke__0__x" / "meta.json")
    assert demo.main(["--config", str(config), "--suite", "smoke", "--run-dir", str(tmp_path), "--quiet"]) == 2
    assert "meta.json: wall_s" in capsys.readouterr().err


def test_a_half_written_line_at_the_end_is_what_a_killed_run_leaves(run: Path) -> None:
    whole = (run / "episodes.csv").read_text()
    (run / "episodes.csv").write_text(whole + "10")
    assert main(["--resume", str(run), "--quiet", "--set", "total_decisions=2048"]) == 0
    lines = (run / "episodes.csv").read_text()
    assert lines.startswith(whole) and len(lines.splitlines()) > len(whole.splitlines())
    assert len((run / "command.txt").read_text().splitlines()) == 2


def test_what_cannot_be_written_is_one_line(run: Path) -> None:
    (run / "table.csv").mkdir()
    with pytest.raises(ConfigError, match=r"cannot write '.*table.csv': Is a directory"):
        RunFolder(run).append_rows("table.csv", ["a"], [[1]])


def test_weights_of_another_shape_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_hidden(8)(run / "best" / "policy.json")
    assert evaluate.main(["--suite", "smoke", "--policy", str(run)]) == 2
    assert "does not fit this environment: 'scorer.embed.bias' has shape (16,), not (8,)" in capsys.readouterr().err
