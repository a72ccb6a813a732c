from __future__ import annotations

import pytest

from dysharp_env.reproduction.steps.crosslayer import (
    COMMUNICATION,
    COMPUTE,
    paired_passes_ops,
    two_batch_ops,
)
from dysharp_env.reproduction.steps.parts import BlockParts
from dysharp_env.reproduction.steps.streams import Op, makespan_ps, run_streams

FORWARD = BlockParts(around_ps=2, moe_ps=10, cut_ps=(3, 4, 3))
BACKWARD = BlockParts(around_ps=4, moe_ps=14, cut_ps=(3, 8, 3))


def test_a_stream_runs_in_order_and_waits() -> None:
    ops = [Op("a", "x", 5), Op("b", "y", 3, ("a",)), Op("c", "y", 2), Op("d", "x", 1, ("b",))]
    assert run_streams(ops) == {"a": (0, 5), "b": (5, 8), "c": (8, 10), "d": (8, 9)}
    assert makespan_ps(ops) == 10
    assert makespan_ps([]) == 0


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ([Op("a", "x", 1), Op("a", "y", 1)], "two operations are named 'a'"),
        ([Op("a", "x", 1, ("b",))], "'a' waits for 'b', which does not exist"),
        ([Op("a", "x", 1, ("b",)), Op("b", "x", 1)], "'a' waits in a circle"),
    ],
)
def test_streams_that_cannot_run(ops: list[Op], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_streams(ops)


def test_two_batches_by_hand() -> None:
    spans = run_streams(two_batch_ops(FORWARD, 2))
    assert spans == {
        # Compute: both attentions, then the experts of each batch as its tokens have come.
        "A0a": (0, 2),
        "A0b": (2, 4),
        "M0a": (5, 9),
        "M0b": (9, 13),
        # Communication: dispatch b beside experts a, combine a beside experts b.
        "D0a": (2, 5),
        "D0b": (5, 8),
        "C0a": (9, 12),
        "C0b": (13, 16),
        # The next layer's attention a runs beside combine b.
        "A1a": (13, 15),
        "A1b": (16, 18),
        "D1a": (16, 19),
        "M1a": (19, 23),
        "D1b": (19, 22),
        "M1b": (23, 27),
        "C1a": (23, 26),
        "C1b": (27, 30),
    }
    assert makespan_ps(two_batch_ops(FORWARD, 2)) == 30 < 2 * 2 * FORWARD.total_ps


def test_paired_passes_by_hand() -> None:
    spans = run_streams(paired_passes_ops(FORWARD, BACKWARD, 1))
    assert spans == {
        "FA0": (0, 2),
        "BC0": (0, 3),
        "FD0": (3, 6),  # beside the experts' backward
        "BM0": (3, 11),
        "FM0": (11, 15),
        "BD0": (11, 14),
        "FC0": (15, 18),
        "BA0": (15, 19),
    }
    assert makespan_ps(paired_passes_ops(FORWARD, BACKWARD, 1)) == 19 < FORWARD.total_ps + BACKWARD.total_ps


def test_paired_passes_with_attention_alone_beside_communication() -> None:
    spans = run_streams(paired_passes_ops(FORWARD, BACKWARD, 1, COMMUNICATION))
    # Experts wait for the links: dispatch forward, experts backward, experts forward, then what brings them home.
    assert spans["FD0"] == (3, 6) and spans["BM0"] == (6, 14) and spans["FM0"] == (14, 18)
    assert spans["BD0"] == (18, 21) and spans["FC0"] == (21, 24) and spans["BA0"] == (21, 25)
    assert max(end for _, end in spans.values()) == 25
    alone, beside = (paired_passes_ops(FORWARD, BACKWARD, 3, stream) for stream in (COMMUNICATION, COMPUTE))
    assert makespan_ps(alone) > makespan_ps(beside)


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_one_communication_at_a_time(layers: int) -> None:
    for ops in (two_batch_ops(FORWARD, layers), paired_passes_ops(FORWARD, BACKWARD, layers)):
        ops = list(ops)
        spans = run_streams(ops)
        for stream in {op.stream for op in ops}:
            used = sorted(spans[op.name] for op in ops if op.stream == stream)
            assert all(first[1] <= second[0] for first, second in zip(used, used[1:], strict=False))


def test_a_layer_that_overlaps_inside_cannot_overlap_across() -> None:
    with pytest.raises(ValueError, match="only a layer run in phases"):
        makespan_ps(two_batch_ops(BlockParts(1, 2), 1))
    with pytest.raises(ValueError, match="only a layer run in phases"):
        BlockParts(1, 2).on_fewer_sms(132, 20)


def test_communication_takes_sms_from_everything_that_computes() -> None:
    slowed = BlockParts(around_ps=56, moe_ps=130, cut_ps=(10, 112, 8)).on_fewer_sms(132, 20)
    assert slowed == BlockParts(around_ps=66, moe_ps=150, cut_ps=(10, 132, 8))
