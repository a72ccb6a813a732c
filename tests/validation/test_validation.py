from __future__ import annotations

import re

import pytest

from dysharp_env.system import load_system
from dysharp_env.validation import packets
from dysharp_env.validation.copies import fetch_us
from dysharp_env.validation.layers import expected_remote_gpus
from dysharp_env.validation.measurements import prediction_errors_pct
from dysharp_env.validation.report import validation_rows
from dysharp_env.validation.rows import ValidationRow


@pytest.fixture(scope="module")
def rows() -> dict[str, ValidationRow]:
    with pytest.MonkeyPatch.context() as patch:
        # Single packets take their time; test_packets.py has small layers.
        patch.setattr(packets, "COMPARISONS", packets.COMPARISONS[-1:])
        return {row.name: row for row in validation_rows()}


def test_every_row_passes(rows: dict[str, ValidationRow]) -> None:
    assert [row for row in rows.values() if not row.passes] == []
    groups = [row.group for row in rows.values()]
    assert groups.count("all-to-all") == 4 and groups.count("resolution") == 2 and groups.count("copies") == 5


# What the DySHARP paper states (340 %, 80 %, 69 %), what follows from it by hand, and what NCCL reaches (360 GB/s).
@pytest.mark.parametrize(
    ("pattern", "expected", "digits"),
    [
        ("useless traffic .* 256 experts, 32 GPUs, top-8", 340, 0),
        ("payload efficiency of a packet to 8 GPUs, %", 80.0, 1),
        ("payload efficiency .* explicit addressing", 69.2, 1),
        ("payload efficiency .* with target flits", 72.7, 1),
        ("bytes saved .* small, top-8,", 43.2, 1),
        ("bytes saved .* small, top-16,", 46.3, 1),
        ("bytes saved .* small, top-32,", 47.9, 1),
        ("bytes saved .* large, top-8,", 42.9, 1),
        ("bytes saved .* large, top-16,", 46.0, 1),
        ("bytes saved .* large, top-32,", 47.6, 1),
        ("gain of merged .* 128 B payload, R = 6.95", 1.49, 2),
        ("gain of merged .* 256 B payload, R = 6.95", 1.59, 2),
        ("unicast payload rate of 450 GB/s", 360, 1),
        ("8 ranks, 64 chunks of 65536 B", 70120, 0),
        ("64 ranks, 4 chunks of 65536 B", 40328, 0),
        ("64 ranks, 16 chunks of 65536 B", 155240, 0),
        ("8 ranks, 256 chunks of 16384 B", 70006, 0),
    ],
)
def test_expectations_are_the_published_ones(
    rows: dict[str, ValidationRow], pattern: str, expected: float, digits: int
) -> None:
    (row,) = (row for name, row in rows.items() if re.search(f"^{pattern}", name))
    assert round(row.expected, digits) == expected
    assert row.simulated == pytest.approx(row.expected, rel=0.01)


def test_random_rows_are_told_from_exact_ones(rows: dict[str, ValidationRow]) -> None:
    for name, row in rows.items():
        is_predicted = name.startswith(("useless", "bytes saved", "makespan")) or row.group == "copies"
        if row.group != "measurement":
            assert row.role == ("predicted" if is_predicted else "exact")


def test_measurements_are_predicted_within_6_percent_on_average_and_12_at_most(rows: dict[str, ValidationRow]) -> None:
    measured = [row for row in rows.values() if row.group == "measurement"]
    assert len(measured) == 8 + 20 + 2 + 10 + 2
    assert [row.role for row in measured].count("set") == 7
    mean_pct, largest_pct = prediction_errors_pct(measured)
    assert mean_pct <= 6 and largest_pct <= 12


def test_fetches_of_weights_are_predicted_within_6_percent(rows: dict[str, ValidationRow]) -> None:
    fetches = [row for row in rows.values() if row.group == "copies"]
    assert max(abs(row.error_pct) for row in fetches) <= 6
    # What a matrix more takes, without what a kernel takes besides.
    times = zip(*((row.expected, row.simulated) for row in fetches), strict=True)
    published, simulated = ((last - first) / 11 for first, *_, last in times)
    assert simulated == pytest.approx(published, rel=0.05)


@pytest.mark.parametrize("tile_bytes", [8192, 1 << 20])
def test_the_size_of_tiles_hardly_matters(tile_bytes: int) -> None:
    system = load_system("gb200-nvl72", 4)
    assert fetch_us(system, 3, tile_bytes) == pytest.approx(fetch_us(system, 3), rel=0.01)


def test_expected_remote_gpus_by_hand() -> None:
    # Two GPUs with two experts each, top-2: of 6 pairs of experts one avoids the other GPU, so R = 5/6.
    assert expected_remote_gpus(4, 2, 2) == pytest.approx(5 / 6)
    # All experts chosen: every other GPU.
    assert expected_remote_gpus(8, 8, 4) == 3
