"""``python -m agents.tune``: finds how to run one model's layers on one machine, from minutes of search.

It begins with all shipped schedules and plans, changes them on the routing's training split, chooses for each number
of tokens on the validation split, and reports on the test split beside all that the hardware can run. The folder it
writes holds schedules, a rule and a policy that choose among them, a C header, every GPU's tasks, and the report.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from dysharp_env.commands.options import open_workers
from dysharp_env.commands.output import json_document
from dysharp_env.commands.progress import track
from dysharp_env.config import ConfigError, parse_spec, preset_names, read_yaml, whole_number
from dysharp_env.files import shown, write_text
from dysharp_env.report.gantt import write_picture
from dysharp_env.report.timelines import timeline_of, write_timeline
from dysharp_env.schedules import LayerRun, load_schedule
from dysharp_env.simulator.warmup import ensure_compiled
from dysharp_env.system import Hardware

from .kit import Command, check_options, command_words, deliver, entry
from .opponents.read import read_contender
from .tuning.header import header
from .tuning.policy import NAME, Tuned, make
from .tuning.report import Report, markdown, measure, verdict
from .tuning.search import BASE, TuneSearch, play_all
from .tuning.spec import TuneSpec
from .tuning.tasks import write_tasks

Tell = Callable[[str, float], object]
"""Called with what is being done, and what part of the time is spent."""
_SEARCHING = 0.4  # of the time at least; what choosing, measuring and writing will take is left for them
_WRITING_S, _MARGIN = 5.0, 1.1
_SAVE_EVERY_S = 15.0
_ASKED = ("system", "model", "routing", "tokens")
_GIVEN = ("gpus", "hardware", "minutes", "train", "validation", "test", "renamings", "seed")


def build() -> Command:
    """Returns the options of the command."""
    command = Command("tune", __doc__, run)
    command.add("--system", metavar="NAME", help="a system preset or YAML file")
    command.add("--gpus", type=int, metavar="N", help="use that many of its GPUs")
    text = "what its switch has"
    command.add("--hardware", choices=get_args(Hardware), default="dynamic-multimem", help=text)
    command.add("--model", metavar="NAME", help="a model preset, YAML file or config.json")
    command.add("--routing", metavar="NAME", help="an .npz trace, FILE.npz:NAME for loads, or a generator")
    command.add("--tokens", metavar="N,N,...", help="tokens per GPU that are tuned for")
    command.add("--minutes", type=float, default=5.0, metavar="M", help="of wall time")
    for part, what in (("train", "searched on"), ("validation", "chosen on"), ("test", "reported")):
        count = TuneSpec.model_fields[part].default
        command.add(f"--{part}", type=int, default=count, metavar="N", help=f"layers a number of tokens {what}")
    command.add("--renamings", type=int, default=2, metavar="N", help="numberings of the GPUs in what is measured")
    command.add("--out", metavar="FOLDER", help="what is written (by default runs/tune-MODEL-SYSTEM)")
    command.add("--resume", metavar="FOLDER", help="go on with the minutes that are left of an interrupted run")
    command.add_workers().add_report()
    return command.add_seed("the search").add_quiet("no progress line").add_json()


def run(args: argparse.Namespace) -> int:
    """Tunes as the options say."""
    check_options(args)
    workers = open_workers(args)
    spec, folder = _resumed(args) if args.resume else _begun(args)
    ensure_compiled()  # which is not of the minutes
    base = load_schedule(BASE)
    with workers, track("tunes", 1.0, quiet=args.quiet) as shown:

        def tell(text: str, part: float) -> None:
            shown.at(part, text)

        train = [problem for tokens in spec.tokens for problem in spec.problems(tokens, "train")]
        search = TuneSearch(train, spec.train, workers, spec.seed)
        _search(search, spec, folder / "search.json", tell)
        tell("chooses", 0.8)
        candidates, begun = search.candidates, len(search.began_with)
        chosen, unsearched, known = {}, {}, []
        for tokens in spec.tokens:
            problems = spec.problems(tokens, "validation")
            known += problems
            means = play_all([base.with_changes(each.changes) for each in candidates], problems, workers).mean(axis=1)
            chosen[tokens] = candidates[int(means.argmin())].changes
            unsearched[tokens] = base.with_changes(candidates[int(means[:begun].argmin())].changes)
        tuned = make(base, chosen, known, folder, spec.seed, workers)
        report = measure(spec, tuned, unsearched, workers, lambda tokens: tell(f"measures {tokens} tokens", 0.9))
    searched = f"{search.changes} changes tried on {spec.train} layers each, {search.portfolio.episodes} layers played"
    drawn = _write(spec, tuned, report, folder, searched)
    config = {"tune": spec.model_dump(mode="json"), "folder": str(folder)}
    if args.report:
        from dysharp_env.report.page.write import write_page

        from .tuning.page import tune_page

        document = json_document("tune", spec.seed, config, **report.content())
        write_page(args.report, tune_page(command_words(args), document, spec, tuned, report, searched, drawn))
    deliver(args, config, report.content(), verdict(report), f"{folder}/report.md says more.", timed=True)
    return 0


def _begun(args: argparse.Namespace) -> tuple[TuneSpec, Path]:
    """Returns what the options ask for, and the folder, made and begun.

    Raises:
        ConfigError: An option is missing or wrong, or the folder holds another run.
    """
    if missing := [name for name in _ASKED if getattr(args, name) is None]:
        raise ConfigError(f"--{missing[0]} is missing: it says what is tuned for")
    given: dict[str, Any] = {name: getattr(args, name) for name in (*_ASKED, *_GIVEN)}
    numbers = [whole_number(part.strip()) for part in args.tokens.split(",")]
    tokens = {number for number in numbers if number is not None}
    if None in numbers:
        raise ConfigError(f"tokens='{shown(args.tokens)}' must be numbers such as 64,256,1024")
    spec = parse_spec(TuneSpec, {**given, "tokens": sorted(tokens)}, source="tune")
    spec.problems(spec.tokens[0], "test")  # says what does not fit before anything is written
    folder = Path(args.out or f"runs/tune-{Path(spec.model).stem}-{Path(spec.system).stem}")
    if (folder / "tune.yaml").exists():
        raise ConfigError(f"out='{folder}' holds a run already; name another folder, or --resume {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write out='{folder}': {error.strerror}") from None
    write_text(folder / "tune.yaml", spec.to_yaml())
    return spec, folder


def _resumed(args: argparse.Namespace) -> tuple[TuneSpec, Path]:
    """Returns what an interrupted run was asked for, and its folder.

    Raises:
        ConfigError: It is no such folder.
    """
    folder = Path(args.resume)
    if not (folder / "tune.yaml").is_file():
        raise ConfigError(f"resume='{folder}' holds no run: there is no tune.yaml in it")
    return parse_spec(TuneSpec, read_yaml(folder / "tune.yaml"), source=f"{folder}/tune.yaml"), folder


def _search(search: TuneSearch, spec: TuneSpec, state: Path, tell: Tell) -> None:
    """Searches for as long as there is time, and saves now and then."""
    if state.is_file():
        search.load(state)
    total_s, before_s, began_s = 60 * spec.minutes, search.elapsed_s, time.monotonic()
    saved_s = began_s
    if not search.began_with:
        tell("plays what is shipped", 0.0)
        search.start()
    while True:
        now_s = time.monotonic()
        search.elapsed_s = before_s + now_s - began_s
        is_over = search.elapsed_s >= max(_SEARCHING * total_s, total_s - _after_s(search, spec))
        if is_over or now_s - saved_s >= _SAVE_EVERY_S or search.steps == 0:
            search.save(state)
            saved_s = now_s
        if is_over:
            return
        gain = 1 - math.exp(-float(search.gains().mean()))
        tell(f"{search.changes} changes, {gain:.1%} saved", search.elapsed_s / total_s)
        search.step()


def _after_s(search: TuneSearch, spec: TuneSpec) -> float:
    """Returns about how long it takes to choose, to measure and to write, by how long the start took."""
    measured = (len(preset_names("schedules")) + 3) * spec.test * spec.renamings
    chosen = len(search.candidates) * spec.validation * spec.renamings
    return _WRITING_S + _MARGIN * search.round_s * (measured + chosen)


def _write(spec: TuneSpec, tuned: Tuned, report: Report, folder: Path, searched: str) -> list[tuple[str, LayerRun]]:
    """Writes the report, the header, tasks of one test layer of each number of tokens, a picture and a timeline.

    Returns what the picture shows: the tuned layer and the best shipped schedule on it.
    """
    drawn: list[tuple[str, LayerRun]] = []
    write_text(folder / "report.md", markdown(spec, tuned, report, searched))
    write_text(folder / "report.json", json.dumps(report.content(), indent=1) + "\n")
    system = spec.entry(spec.tokens[0], "test").build().system
    what = f"{spec.model} on {spec.system}, hardware {spec.hardware}, routing {spec.routing}"
    write_text(folder / "schedule.h", header(tuned.plans, tuned.plan_of_tokens, system, what))
    for tokens in spec.tokens:
        problem = spec.problems(tokens, "test")[0]
        mine = problem.run(tuned.of_tokens(tokens), logging=True)
        tasks = folder / "tasks" / f"{tokens}-tokens"
        tasks.mkdir(parents=True, exist_ok=True)
        write_tasks(tasks, mine)
        if tokens == spec.tokens[len(spec.tokens) // 2]:
            title = f"{NAME}: {problem.name}"
            timeline = timeline_of(mine.engine, title, schedule=mine.schedule, system=problem.system)
            write_timeline(folder / "timeline.json", timeline)
            rival = read_contender(report.best_of_tokens[tokens])
            other = rival.first.run(problem, logging=True)
            drawn = [(NAME, mine), (rival.name, other)]
            write_picture(folder / "picture.png", *drawn)
    return drawn


main = entry(build, __name__)
