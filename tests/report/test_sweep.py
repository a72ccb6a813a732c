"""Sweeps: who overtakes whom between which sizes, and what is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from dysharp_env.report.records import Total
from dysharp_env.report.sweep import Crossing, Point, crossing_lines, crossings, drawn_names
from dysharp_env.report.sweep_plot import write_sweep


def points(**makespans_us: list[float]) -> list[Point]:
    sizes = [64, 256, 1024, 4096]
    count = len(next(iter(makespans_us.values())))
    return [
        Point(sizes[i], tuple(Total(name, 1, us[i], 1.0) for name, us in makespans_us.items())) for i in range(count)
    ]


def test_a_crossing_is_where_straight_lines_between_logarithms_meet() -> None:
    # a goes from 100 to 400 and b from 200 to 200: halfway between 64 and 256, at 128, both take 200.
    found = crossings(points(a=[100.0, 400.0], b=[200.0, 200.0]), "a")
    assert found == [Crossing("b", "a", 64, 256, pytest.approx(128.0), pytest.approx(200.0))]
    assert crossing_lines(points(a=[100.0, 400.0], b=[200.0, 200.0]), found, "tokens") == [
        "fastest, by tokens: a at 64, b at 256",
        "b overtakes a between 64 and 256 tokens, near 128",
    ]


def test_equal_times_are_no_crossing_unless_the_order_has_changed_behind_them() -> None:
    assert crossings(points(a=[1.0, 2.0, 3.0], b=[2.0, 2.0, 4.0]), "a") == []
    (found,) = crossings(points(a=[1.0, 2.0, 4.0], b=[2.0, 2.0, 3.0]), "a")
    assert (found.faster, found.below, found.above) == ("b", 64, 1024)
    there_and_back = crossings(points(a=[1.0, 3.0, 1.0], b=[2.0, 2.0, 2.0]), "a")
    assert [(each.faster, each.below) for each in there_and_back] == [("b", 64), ("a", 256)]


def test_of_many_schedules_the_fastest_and_the_one_compared_with_are_told() -> None:
    many = {f"s{i}": [10.0 + i, 20.0 - i] for i in range(7)}
    found = crossings(points(**many), "s3")
    assert {frozenset((each.faster, each.slower)) for each in found} == {
        frozenset(pair) for pair in (("s0", "s6"), ("s0", "s3"), ("s3", "s6"))
    }
    # s0 and s6 are fastest somewhere; of the others s1 takes least on the mean of logarithms: 11 times 19.
    assert drawn_names(points(**many), "s3", 4) == ["s0", "s1", "s3", "s6"]


@pytest.mark.parametrize(("name", "head"), [("x.png", b"\x89PNG"), ("x.svg", b"<?xml"), ("x.pdf", b"%PDF")])
def test_a_sweep_is_drawn(name: str, head: bytes, tmp_path: Path) -> None:
    shown = points(a=[100.0, 400.0], b=[200.0, 200.0])
    target = tmp_path / name
    found = crossings(shown, "a")
    for ratio in (False, True):
        assert write_sweep(str(target), shown, found, "a", title="t", what="tokens", ratio=ratio) == ["a", "b"]
        assert target.read_bytes().startswith(head)
