"""What every GPU does, in order: which tokens, of which expert, on which SMs, as a kernel would be handed it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from dysharp_env.files import write_text
from dysharp_env.schedules import LayerRun
from dysharp_env.simulator.record import record

COLUMNS = ("place", "stage", "group", "first_sm", "sms", "item", "expert", "start_us", "end_us", "tokens")


def sm_groups(run: LayerRun) -> dict[str, tuple[int, int]]:
    """Returns the first SM and how many each group has; groups that take turns begin at the same."""
    program, num_sms = run.engine.program, int(run.engine.state.root["num_sms"][0])
    sizes = {"dispatch": program.dispatch_sms, "combine": program.combine_sms, "gemm": program.gemm_sms}
    groups, first = {}, 0
    apart = sum(sizes.values()) == num_sms
    for name, size in sizes.items():
        groups[name] = (first if apart else 0, size)
        first += size
    groups["weights"] = (groups["gemm"][0], min(run.schedule.replicate.sms, groups["gemm"][1]))
    return groups


def write_tasks(folder: Path, run: LayerRun) -> None:
    """Writes ``gpu-N.csv`` for every GPU of a layer that was run to its end.

    A line is a task: its ``item`` is a chunk of a home GPU's tokens, a tile of an expert's or a copy of an expert;
    ``tokens`` are numbers in the layer, apart by spaces.

    Raises:
        ConfigError: A file cannot be written.
    """
    schedule, groups = record(run.engine), sm_groups(run)
    texts = [io.StringIO() for _ in range(run.engine.workload.num_gpus)]
    writers = [csv.writer(text, lineterminator="\n") for text in texts]
    for writer in writers:
        writer.writerow(COLUMNS)
    places = [0] * len(texts)
    held = {"chunk": schedule.chunks, "tile": schedule.tiles}
    for row in schedule.rows:
        what, number = row.item.split()
        tokens = held[what][int(number)].tolist() if what in held else []
        line = (places[row.gpu], row.stage, row.resource, *groups[row.resource], row.item, row.expert)
        writers[row.gpu].writerow((*line, row.start_us, row.end_us, " ".join(map(str, tokens))))
        places[row.gpu] += 1
    for gpu, text in enumerate(texts):
        write_text(folder / f"gpu-{gpu}.csv", text.getvalue())
