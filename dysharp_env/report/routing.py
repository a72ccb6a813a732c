"""Statistics of traces, loads and placements as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from dysharp_env.report.tables import empty_table
from dysharp_env.workload.skew import Skew
from dysharp_env.workload.statistics import FanOutStatistics, LayerStatistics, LoadStatistics


def load_table(layers: Mapping[int, LoadStatistics], mean: LoadStatistics) -> Table:
    """Returns one line per layer, and their mean: loads, and of traces how much neighbouring tokens agree."""
    columns, title = ["load CV", "max/mean", "hottest 1/8"], "Expert loads"
    if isinstance(mean, LayerStatistics):
        columns += ["repeated by next", "if independent"]
        title += " and locality"
    table = empty_table(title, ("layer",), columns)
    for label, row in (*layers.items(), ("mean", mean)):
        if label == "mean":
            table.add_section()
        cells = [f"{row.load_cv:.2f}", f"{row.load_max_over_mean:.2f}", f"{row.hottest_share:.1%}"]
        if isinstance(row, LayerStatistics):
            cells += [f"{row.adjacent_share:.3f}", f"{row.adjacent_share_independent:.3f}"]
        table.add_row(str(label), *cells)
    return table


def skew_table(skews: Sequence[Skew], placed: str) -> Table:
    """Returns one line per number of GPUs: how many times less time compute would take in perfect balance."""
    columns = ("GPUs", "lower quartile", "median", "upper quartile", "worst", "its layer")
    table = empty_table(f"What balance is worth: work of the busiest GPU/mean, {placed}", (), columns)
    for skew in skews:
        numbers = (skew.lower_quartile, skew.median, skew.upper_quartile, skew.worst)
        table.add_row(str(skew.num_gpus), *(f"{number:.2f}" for number in numbers), str(skew.worst_layer))
    return table


def fan_out_table(fan_out: Sequence[FanOutStatistics]) -> Table:
    """Returns one line per number of GPUs: how far tokens go."""
    columns = ("GPUs", "GPUs a token", "if uniform", "busiest GPU/mean", "busiest pair/mean")
    table = empty_table("Where tokens go, each counted once a GPU, placed contiguously", (), columns)
    for reach in fan_out:
        numbers = (reach.fan_out, reach.fan_out_uniform, reach.gpu_max_over_mean, reach.pair_max_over_mean)
        table.add_row(str(reach.num_gpus), *(f"{number:.2f}" for number in numbers))
    return table
