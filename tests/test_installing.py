"""What is installed, under which licences and from which versions on, and that the core does without the rest."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from agents.__main__ import COMMANDS
from agents.__main__ import main as agents_main
from dysharp_env import config
from dysharp_env.config import how_to_install
from dysharp_env.schedules.contenders import agents_package
from dysharp_env.simulator.warmup import ensure_compiled

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = [
    *("torch", "stable_baselines3", "sb3_contrib", "tensorboard", "safetensors", "cma"),
    *("matplotlib", "jinja2", "ray"),
]
# Refuses to import what the core does without, as if it were not installed.
BARE = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import dysharp_env
from dysharp_env.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
LAYER = ["--gpus", "2", "--model", "small", "--tokens", "8", "--routing", "uniform"]


def bare(*argv: str) -> subprocess.CompletedProcess[str]:
    ensure_compiled()  # for which a busy machine needs longer than a child is given
    return subprocess.run(
        [sys.executable, "-c", BARE, *argv], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["simulate", *LAYER],
        ["compare", *LAYER, "--schedule", "dysharp", "--schedule", "deepep"],
        ["trace", "info", "recorded"],
    ],
    ids=lambda argv: argv[0],
)
def test_the_core_needs_neither_torch_nor_matplotlib(argv: list[str]) -> None:
    ended = bare(*argv)
    assert ended.returncode == 0, ended.stderr
    assert "error" not in ended.stderr
    assert ended.stdout


@pytest.mark.parametrize(
    ("argv", "library", "extra"),
    [
        (["simulate", *LAYER, "--picture", "x.png"], "matplotlib", "report"),
        (["simulate", *LAYER, "--schedule", "reference"], "torch", "agents"),
    ],
)
def test_what_needs_more_says_what_to_install(
    argv: list[str], library: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = bare(*(str(tmp_path / each) if each == "x.png" else each for each in argv))
    line = f"error: this needs {library}, which is not installed: {how_to_install(library, extra)}\n"
    assert (ended.returncode, ended.stderr) == (2, line)


def test_agents_are_installed_under_a_name_of_their_own() -> None:
    tops = {name.partition(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]}
    assert tops == {"dysharp_agents", "dysharp_env"}
    assert set(PROJECT["project"]["scripts"]) == {"dysharp", "dysharp-agents"}
    assert not any("<" in each for each in PROJECT["project"]["dependencies"] if each.startswith("torch"))


def dependencies() -> dict[str, dict[str, str]]:
    """Returns the lower bound of each declared dependency, empty if there is none, by extra and name."""
    by_extra = {"core": PROJECT["project"]["dependencies"], **PROJECT["project"]["optional-dependencies"]}
    bounds: dict[str, dict[str, str]] = {}
    for extra, requirements in by_extra.items():
        for requirement in requirements:
            name, bound = re.match(r"([\w.-]+)(?:\[\w+\])?(?:>=([\d.]+))?", requirement).groups()
            if name != "dysharp-env":
                bounds.setdefault(name.lower(), {})[extra] = bound or ""
    return bounds


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    text = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w.-]+)==([\d.]+)$", text, re.MULTILINE))
    bounds = {
        name: next(iter(by_extra.values()))
        for name, by_extra in dependencies().items()
        if set(by_extra) != {"examples"} and any(by_extra.values())
    }
    assert set(pins) == set(bounds) - {"torch"}
    for name, version in pins.items():
        assert re.fullmatch(rf"{re.escape(bounds[name])}(\.0)*|{re.escape(bounds[name])}\.\d{{4}}", version), name


# What a package says of its licence, by what the guide calls it.
SAYINGS = {"MIT": "mit", "Apache-2.0": "apache", "PSF-2.0": "python software foundation", "MPL-2.0": "mpl-2.0"}


def test_the_guide_names_every_dependency_and_its_licence() -> None:
    page = (ROOT / "dysharp_env" / "docs" / "developers.md").read_text(encoding="utf-8")
    table = page.partition("<!-- dependencies -->")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    extras = {name: ", ".join(by_extra) for name, by_extra in dependencies().items()}
    assert {name.lower(): extra for name, _, _, extra in rows} == extras
    checked = 0
    for name, licence, _, _ in rows:
        try:
            held = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            continue
        said = [held.get("License-Expression"), held.get("License"), *held.get_all("Classifier", [])]
        told = " ".join(each for each in said if each and (not each.startswith("Development"))).lower()
        assert SAYINGS.get(licence, licence.partition("-")[0].lower()) in told, (name, licence)
        checked += 1
    assert checked > 20


def test_the_package_is_found_by_its_installed_name_where_agents_is_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert agents_package() == "agents"
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("", encoding="utf-8")
    code = "import agents; from dysharp_env.schedules.contenders import agents_package; print(agents_package())"
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert ended.stdout == "dysharp_agents\n"


def test_agents_without_a_command_are_an_index(capsys: pytest.CaptureFixture[str]) -> None:
    assert agents_main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert agents_main(["trian"]) == 2
    assert "choose from 'demo', 'train'" in capsys.readouterr().err


def test_agents_say_what_they_need() -> None:
    code = BARE.replace("from dysharp_env.__main__ import main", "from agents.__main__ import main")
    ended = subprocess.run(
        [sys.executable, "-c", code, "train", "--config", "demo"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("error: this needs torch, which is not installed: ")


def test_every_command_is_in_the_index() -> None:
    files = {path.stem for path in (ROOT / "agents").glob("*.py")} - {"__init__", "__main__", "kit"}
    assert set(COMMANDS) == files | {"exact"}


def test_how_to_install_works_from_a_checkout_and_from_a_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = "pip install ray, or with all that goes with it pip install"
    assert how_to_install("ray", "dist") == f"{whole} '.[dist]' in the checkout"
    monkeypatch.setattr(config, "is_checkout", lambda: False)
    assert how_to_install("ray", "dist") == f"{whole} 'dysharp-env[dist]'"


def test_policies_are_listed_without_torch() -> None:
    ended = bare("list", "policies")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "the shipped agent, on dysharp-tuned; seeds 0, 1, 2" in ended.stdout
