"""The tables of ``reproduce``: each a function from experiments to claims. Schedules and models are named as data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from dysharp_env.reproduction import published
from dysharp_env.reproduction.claims import Claim, Measure
from dysharp_env.reproduction.experiments import ONE, PASSES, Experiments, Point
from dysharp_env.reproduction.published import STATEMENTS

NINE = tuple(Point(model, top_k) for model in published.PAPER_MODELS for top_k in published.PAPER_TOP_K)
LARGE_8 = Point("large", 8)
BASELINES = tuple(published.LAYER_SPEEDUPS)
HEADLINE = ("deepep", "comet")
COMMUNICATION_ONLY = 0.001
EQUAL_PASSES = ("forward", "forward")
# The time of a schedule at a point: a method of ``Experiments``.
TimeOf = Callable[[Point, str], Measure]


def _speedups(
    table: str, name: str, pairs: Sequence[tuple[Measure, Measure]], numbers: tuple[float | None, float | None]
) -> Iterator[Claim]:
    """Yields the maximum and the geometric mean of a speed-up over several points."""
    yield Claim(table, name, "max", numbers[0], tuple(pairs))
    yield Claim(table, name, "geomean", numbers[1], tuple(pairs))


def _value(table: str, name: str, slower: Measure, faster: Measure, stated: str = "") -> Claim:
    return Claim(table, name, "value", None, ((slower, faster),), stated)


def _gain(table: str, name: str, time_of: TimeOf, point: Point, schedule: str, stated: str = "") -> Claim:
    """Returns the speed-up of dysharp over one schedule at one point."""
    return _value(table, name, time_of(point, schedule), time_of(point, "dysharp"), stated)


def _headline(runs: Experiments, table: str, point: Point, where: str, stated: str = "") -> Iterator[Claim]:
    for schedule in HEADLINE:
        yield _gain(table, f"dysharp over {schedule}, {where}", runs.layer, point, schedule, stated)


def _nine(time_of: TimeOf, schedule: str) -> list[tuple[Measure, Measure]]:
    """Returns the times of a schedule and of dysharp for each of the paper's nine models."""
    return [(time_of(point, schedule), time_of(point, "dysharp")) for point in NINE]


def layer(runs: Experiments) -> Iterator[Claim]:
    """MoE layer alone, forward."""
    share = runs.communication_share(LARGE_8, "deepep")
    name = "communication share of a large top-8 layer under deepep, forward"
    yield Claim("layer", name, "value", published.COMMUNICATION_SHARE, ((share, ONE),))
    for schedule, numbers in published.LAYER_SPEEDUPS.items():
        yield from _speedups("layer", f"dysharp over {schedule}", _nine(runs.layer, schedule), numbers)


def end_to_end(runs: Experiments) -> Iterator[Claim]:
    """A training step: attention, MoE layers, 16 stages under 1F1B or DualPipe."""
    for schedule, numbers in published.TRAINING_SPEEDUPS.items():
        yield from _speedups("end-to-end", f"dysharp over {schedule}", _nine(runs.training, schedule), numbers)


def traffic(runs: Experiments) -> Iterator[Claim]:
    """Payload bytes over all links, and how close communication alone comes to the bound."""
    for point in NINE:
        deepep = runs.payload(point, "deepep")
        for schedule, stated in (("dysharp", "traffic"), ("nvls", "nvls traffic")):
            name = f"{schedule} bytes over deepep bytes, {point.label}"
            yield _value("traffic", name, runs.payload(point, schedule), deepep, STATEMENTS[stated])
    alone = [Point(point.model, point.top_k, compute_scale=COMMUNICATION_ONLY) for point in NINE]
    pairs = [(runs.communication_bound(point), runs.layer(point, "dysharp")) for point in alone]
    name = "lower bound over dysharp, communication alone"
    yield Claim("traffic", name, "geomean", None, tuple(pairs), STATEMENTS["communication"])


def ablation(runs: Experiments) -> Iterator[Claim]:
    """What each part of DySHARP brings, Large top-8, as speed-up over DeepEP."""
    stated = {
        "dysharp-basic": STATEMENTS["no gain"],
        "dysharp-comet": STATEMENTS["no gain"],
        "fused-unicast": STATEMENTS["no faster than comet"],
    }
    deepep = runs.layer(LARGE_8, "deepep")
    for schedule in ("dysharp-basic", "dysharp-comet", "fused-unicast", "comet", "dysharp"):
        name = f"{schedule} over deepep"
        yield _value("ablation", name, deepep, runs.layer(LARGE_8, schedule), stated.get(schedule, ""))


def gpus(runs: Experiments) -> Iterator[Claim]:
    """Small and Medium, top-8, on 4 to 64 GPUs."""
    for model in ("small", "medium"):
        for count in published.GPU_COUNTS:
            planes = published.PLANES_OF_GPUS.get(count)
            point = Point(model, 8, gpus=count, changes=(("link.planes", planes),) if planes else ())
            yield from _headline(runs, "gpus", point, f"{point.label}, {count} GPUs", STATEMENTS["gpus"])


def sequence(runs: Experiments) -> Iterator[Claim]:
    """Large top-8 with sequences of 1024 to 16384 tokens."""
    for tokens in published.SEQUENCES:
        point = Point("large", 8, tokens=tokens)
        yield from _headline(runs, "sequence", point, f"{point.label}, {tokens} tokens", STATEMENTS["sequence"])


def imbalance(runs: Experiments) -> Iterator[Claim]:
    """Large top-8 with expert loads spread normally or by a power law."""
    routings = [f"paper-normal:{std}" for std in published.NORMAL_SPREADS]
    routings += [f"power-law:{alpha}" for alpha in published.POWER_EXPONENTS]
    for routing in routings:
        point = Point("large", 8, routing=routing)
        yield from _headline(runs, "imbalance", point, f"{point.label}, {routing}", STATEMENTS["imbalance"])


def tile(runs: Experiments) -> Iterator[Claim]:
    """Small top-8 with tiles of other sizes than 128 tokens: time over that of 128."""
    sizes = {
        tokens: runs.layer(Point("small", 8, layer_changes=(("tile_tokens", tokens),)), "dysharp")
        for tokens in published.TILE_TOKENS
    }
    for tokens, measure in sizes.items():
        if tokens != 128:
            yield _value("tile", f"time of {tokens}-token tiles over 128", measure, sizes[128], STATEMENTS["tile"])


def inference(runs: Experiments) -> Iterator[Claim]:
    """Prefill of one sequence per GPU, and 512 decoded tokens."""
    for model in published.PAPER_MODELS:
        point = Point(model, routing=published.INFERENCE_ROUTING)
        for what, time_of, other in (("prefill", runs.prefill, "two-batch"), ("decode", runs.decode, "deepep-ll")):
            for schedule in (*BASELINES, other):
                yield _gain("inference", f"{what}, {model}, dysharp over {schedule}", time_of, point, schedule)


def models(runs: Experiments) -> Iterator[Claim]:
    """Public models as they are configured: layer and training step."""
    for model in ("gpt-oss-120b", "qwen3-235b"):
        for schedule in BASELINES:
            for what, time_of in (("layer", runs.layer), ("end to end", runs.training)):
                yield _gain("models", f"{what}, {model}, dysharp over {schedule}", time_of, Point(model), schedule)


def dgx_h100(runs: Experiments) -> Iterator[Claim]:
    """Large top-8 on the 8 GPUs of a DGX H100."""
    point = Point("large", 8, system="dgx-h100")
    for schedule in BASELINES:
        yield _gain("dgx-h100", f"dysharp over {schedule}", runs.layer, point, schedule)


def sensitivity(runs: Experiments) -> Iterator[Claim]:
    """The headline, mostly of Large top-8, under what the paper leaves open."""
    for scale in (0.25, 0.5, 1.0, 2.0, 4.0):
        point = Point("large", 8, compute_scale=scale)
        yield from _headline(runs, "sensitivity", point, f"compute time x {scale:g}")
    for direction in PASSES:
        pass_alone = partial(runs.layer, passes=(direction,))
        for schedule in BASELINES:
            name = f"dysharp over {schedule}, nine models, {direction} pass alone"
            yield from _speedups("sensitivity", name, _nine(pass_alone, schedule), (None, None))
    for payload in (128, 256):
        point = Point("large", 8, changes=(("link.payload_bytes", payload),))
        yield from _headline(runs, "sensitivity", point, f"packets of {payload} B")
    free = (("link.header_flits", 0), ("link.ack_flits", 0), ("link.request_flits", 0))
    where = "no flits for headers, acknowledgements and requests"
    yield from _headline(runs, "sensitivity", Point("large", 8, changes=free), where)
    for queueing in ("output_queued", "voq", "input_fifo"):
        point = Point("large", 8, changes=(("switch.queueing", queueing),))
        yield from _headline(runs, "sensitivity", point, f"queueing {queueing}")
    for schedule in HEADLINE:
        name = f"dysharp-push over {schedule}, push in place of pull"
        yield _value("sensitivity", name, runs.layer(LARGE_8, schedule), runs.layer(LARGE_8, "dysharp-push"))


def causes(runs: Experiments) -> Iterator[Claim]:
    """Misses of the tables above again, each under the one other assumption that accounts for it."""
    for schedule in ("fastermoe", "tutel"):
        pairs = [
            (runs.layer(replace(point, schedule_changes=(("copies", "gpu"),)), schedule), runs.layer(point, "dysharp"))
            for point in NINE
        ]
        name = f"layer, dysharp over {schedule} with one copy of a token per GPU"
        yield from _speedups("causes", name, pairs, published.LAYER_SPEEDUPS[schedule])
    attention_alone = replace(runs, steps=runs.steps.with_changes({"overlap_beside": "attention"}))
    for schedule, numbers in published.TRAINING_SPEEDUPS.items():
        steps = attention_alone if schedule == "dualpipe" else runs
        beside = ", attention alone beside its communication" if schedule == "dualpipe" else ""
        for passes, what in ((PASSES, ""), (EQUAL_PASSES, ", backward GEMMs as large as forward ones")):
            if not beside and not what:
                continue
            pairs = [
                (steps.training(point, schedule, passes), runs.training(point, "dysharp", passes)) for point in NINE
            ]
            yield from _speedups("causes", f"end to end, dysharp over {schedule}{beside}{what}", pairs, numbers)
    small, slower = Point("small", 8), 128 / 64 * (64 + 128) / (128 + 128)
    half = replace(small, layer_changes=(("tile_tokens", 64),), compute_scale=slower)
    name = f"time of 64-token tiles over 128, their GEMMs taking {slower:g} times as long"
    yield _value("causes", name, runs.layer(half, "dysharp"), runs.layer(small, "dysharp"), STATEMENTS["tile"])
    for request in (128, 256, 512):
        point = Point("large", 8, changes=(("link.multimem_request_bytes", request),))
        yield from _headline(runs, "causes", point, f"large top-8, a read request for every {request} B")


TABLES: dict[str, Callable[[Experiments], Iterator[Claim]]] = {
    "layer": layer,
    "end-to-end": end_to_end,
    "traffic": traffic,
    "ablation": ablation,
    "gpus": gpus,
    "sequence": sequence,
    "imbalance": imbalance,
    "tile": tile,
    "inference": inference,
    "models": models,
    "dgx-h100": dgx_h100,
    "sensitivity": sensitivity,
    "causes": causes,
}
