"""The page of a tuning run: what report.md says, with intervals drawn, and the tuned layer beside the best shipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dysharp_env.report.page.layers import timeline_section
from dysharp_env.report.page.parts import Bar, Bars, Page, Section
from dysharp_env.schedules import LayerRun

from .policy import Tuned
from .report import Report, grids, lines_of, rule_text, texts, title
from .spec import TuneSpec

_HOW_TO_READ = (
    "Left of the dashed line is faster than the best shipped schedule. A dark mark is the geometric mean over the test"
    " layers, which were not searched; the blue bar is its 95 % interval."
)


def tune_page(
    command: Sequence[str],
    document: dict[str, Any],
    spec: TuneSpec,
    tuned: Tuned,
    report: Report,
    searched: str,
    drawn: Sequence[tuple[str, LayerRun]],
) -> Page:
    """Returns the page; ``drawn`` are the tuned layer and the best shipped schedule on it, with logs."""
    done, gained, beside = texts(spec, report, searched)
    plans, *tables = grids(spec, tuned, report)
    sections = [Section("Plans", [plans], [rule_text(tuned)] if tuned.rule else [])]
    for tokens, grid in zip((None, *spec.tokens), tables, strict=True):
        bars = [
            Bar(line.policy, line.ratio.value, f"{line.ratio.value:.3f}, {line.mean_us:.1f} µs", *line.ratio[1:])
            for line in lines_of(report, tokens)
        ]
        shown = Bars(f"Makespan / that of {report.best_shipped} on the same layer", bars, mark=1.0)
        sections.append(Section("All test layers" if tokens is None else grid.title, [shown, grid], [_HOW_TO_READ]))
    sections.append(timeline_section(drawn))
    return Page(f"Tuned: {title(spec)}", [gained, beside, done], command, document, sections)
