"""Pages: what they say and show, that they hold whatever names hold as text, and that a browser draws them."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.table import Table

from dysharp_env.__main__ import main
from dysharp_env.commands.output import json_document, run_records
from dysharp_env.report.explained import explain
from dysharp_env.report.page.layers import compare_page, explain_page, simulate_page
from dysharp_env.report.page.parts import Bar, Bars, Grid, Page, Section
from dysharp_env.report.page.write import config_digest, html, write_page
from dysharp_env.report.records import TimedRun, run_timed
from dysharp_env.schedules import Problem, load_schedule
from dysharp_env.schedules.opponent import Contender
from dysharp_env.workload import ScenarioSpec

EVIL = "<script>document.title = 'evil'</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SWITCHES = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--enable-logging=stderr"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900"),
]


class Reader(HTMLParser):
    """Collects the text of a page, what its tags name, and the cells of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("td", "th"):
            self.cells[-1] += data


@pytest.fixture(scope="module")
def runs() -> list[TimedRun]:
    scenario = ScenarioSpec(system="dgx-h100", gpus=4, model="small", tokens=32, routing="uniform").build()
    workload = scenario.draw(0)
    contenders = [Contender.of_schedule(load_schedule(name)) for name in ("deepep", "dysharp")]
    return [run_timed(scenario, workload, contender, logging=True) for contender in contenders]


def compared(runs: list[TimedRun], against: str = "deepep") -> Page:
    document = json_document("compare", 0, {"about": [run.schedule for run in runs]}, **run_records(runs))
    drawn = [(run.schedule, run.run) for run in runs]
    return compare_page(["python", "-m", "dysharp_env", "compare"], document, runs, against, drawn, [])


def test_a_page_says_who_is_fastest_and_holds_the_numbers(runs: list[TimedRun]) -> None:
    page = compared(runs)
    deepep, dysharp = (run.result for run in runs)
    saved_pct = 100 * (1 - dysharp.makespan_us / deepep.makespan_us)
    assert page.lead[0] == (
        f"dysharp is the fastest of 2 schedules: {dysharp.makespan_us:.1f} µs,"
        f" {saved_pct:.1f} % less than deepep ({deepep.makespan_us:.1f} µs)."
    )
    assert page.title == "dysharp and deepep on small, 4 GPUs of dgx-h100, 32 tokens per GPU"
    text = html(page)
    assert page.lead[0] in text and config_digest(page.document) in text and len(text) < 500_000
    assert {f"{dysharp.makespan_us:.1f}", f"{deepep.ratio:.3f}", "makespan µs"} <= set(Reader(text).cells)


def test_a_page_loads_nothing_and_carries_its_results(runs: list[TimedRun]) -> None:
    page = compared(runs)
    reader = Reader(html(page))
    links = [value for _, attributes in reader.tags for key, value in attributes.items() if key in ("src", "href")]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    (saved,) = [link for link in links if link.startswith("data:application/json")]
    assert json.loads(base64.b64decode(saved.partition(",")[2])) == json.loads(json.dumps(page.document))


def test_large_results_are_packed() -> None:
    document = json_document("evaluate", 0, {}, rows=[{"policy": "a", "place": place} for place in range(20_000)])
    text = html(Page("many", ["so it is."], ["a"], document, []))
    (packed,) = re.findall(r'download="evaluate.json.gz" href="data:application/gzip;base64,([^"]+)"', text)
    assert json.loads(gzip.decompress(base64.b64decode(packed))) == document and len(text) < 300_000


def test_names_are_text_wherever_they_stand(runs: list[TimedRun]) -> None:
    evil = [replace(runs[0], schedule=EVIL), runs[1]]
    document = json_document("simulate", 0, {"name": EVIL}, **run_records(evil[:1]))
    pages = [compared(evil, EVIL), simulate_page(["a", EVIL], document, evil[:1], [EVIL])]
    parts = [Grid(EVIL, [EVIL], [[EVIL]], [False]), Bars(EVIL, [Bar(EVIL, 1.0, EVIL)], mark=1.0)]
    pages.append(Page(EVIL, [EVIL], [EVIL], document, [Section(EVIL, parts, [EVIL])]))
    for page in pages:
        text = html(page)
        assert EVIL not in text and "&lt;script&gt;" in text
        # The scripts are the timeline's data and what draws it, as with any other names.
        assert text.count("<script") == sum(2 for section in page.sections if section.title == "Timelines")


def test_tables_are_those_of_the_terminal() -> None:
    table = Table(title="A [bold]title[/]", caption="a note")
    table.add_column("schedule")
    table.add_column("makespan us", justify="right")
    table.add_row("[bold]a[/]", "1.5", end_section=True)
    table.add_row("b", "2")
    grid = Grid.of(table)
    assert (grid.title, grid.note) == ("A title", "a note")
    assert (grid.columns, grid.rows) == (["schedule", "makespan µs"], [["a", "1.5"], ["b", "2"]])
    assert (grid.numbers, grid.ends) == ([False, True], [True, False])


def test_bars_share_an_axis() -> None:
    ratios = Bars("", [Bar("a", 0.8, "", 0.7, 0.9), Bar("b", 1.2, "", dots=(1.1, 1.7))], mark=1.0)
    assert ratios.span == pytest.approx((0.68, 1.72)) and ratios.place(1.2) == "50.00%"
    assert ratios.between(0.7, 0.9) == f"{100 * 0.2 / 1.04:.2f}%"
    assert ratios.ticks == pytest.approx([1.0, 1.5])
    times = Bars("", [Bar("a", 40.0, ""), Bar("b", 160.0, "")], from_zero=True)
    assert times.span == (0.0, 160.0) and times.place(40.0) == "25.00%" and times.ticks == [0, 50, 100, 150]


def test_timelines_hold_what_the_result_says(runs: list[TimedRun]) -> None:
    page = compared(runs)
    (timeline,) = [part for section in page.sections for part in section.parts if part.kind == "timeline"]
    assert [layer["name"] for layer in timeline.data["layers"]] == ["deepep", "dysharp"]
    for layer, run in zip(timeline.data["layers"], runs, strict=True):
        assert layer["makespan_us"] == run.result.makespan_us and layer["bound_us"] == run.result.lower_bound_us
        spans = {name: (first, last) for _, first, last, name in layer["spans"]}
        assert spans["GEMM-1"] == pytest.approx(run.result.phases_us["gemm1"], abs=1e-3)
        # What is drawn of HBM is what the result says that it was busy.
        strips = dict(layer["blocks"]["-1"])
        busy_us = sum(sum(used) for _, used in strips["HBM"]) / 100 * layer["bin_us"]
        assert busy_us == pytest.approx(run.result.utilisation["hbm"]["mean"] * run.result.makespan_us, rel=0.03)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_draws_every_page(runs: list[TimedRun], tmp_path: Path) -> None:
    system, workload = runs[0].run.system, runs[0].run.routed
    explanation = explain(Problem.of(system, workload), Contender.of_schedule(load_schedule("dysharp")))
    document = json_document("explain", 0, {}, runs=[explanation.record()])
    pages = {
        "compare": compared([replace(runs[0], schedule=EVIL), runs[1]], EVIL),
        "explain": explain_page(["python"], document, [explanation], []),
    }
    for name, page in pages.items():
        (tmp_path / name).mkdir()
        path = write_page(tmp_path / name, page)
        command = [CHROMIUM, *SWITCHES, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert "CONSOLE" not in shown.stderr, shown.stderr
        tags = Reader(shown.stdout).tags
        drawn = [attributes.get("data-stage") for tag, attributes in tags if tag in ("rect", "path")]
        assert {"dispatch", "gemm1", "gemm2", "combine", "paid", "weights", "hits"} <= set(drawn)
        assert sum(tag == "table" for tag, _ in tags) == sum(
            part.kind == "grid" for section in page.sections for part in section.parts
        )
        assert f"<title>{page.title.replace('<', '&lt;').replace('>', '&gt;')}</title>" in shown.stdout


def test_of_several_layers_there_are_tables_only(tmp_path: Path) -> None:
    layers = ["--gpus", "2", "--tokens", "8", "--routing", "recorded", "--layer-index", "1,3"]
    schedules = ["--schedule", "deepep", "--schedule", "dysharp"]
    assert main(["compare", *layers, *schedules, "--report", str(tmp_path / "page")]) == 0
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert text.count("<caption>") == 2 and "<caption>All 2 layers, fastest first" in text
    read = Reader(text)
    assert [cell for cell in read.cells if cell.strip() == "hardware"] != []
    assert not [attrs for tag, attrs in read.tags if "timeline" in str(attrs.get("class"))]
