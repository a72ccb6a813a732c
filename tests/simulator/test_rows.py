"""Compiled code's view of memory: narrow fields come out wide, stores in their field and too large ids refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numba import njit

from dysharp_env.config import ConfigError
from dysharp_env.simulator.jit.rows import prefetch, rows
from dysharp_env.simulator.state import lowering, records
from tests.conftest import Case

PAIR, SUM = records.PAIR, records.SUM


@njit
def square_and_store(address: int) -> int:
    sums = rows(address, SUM)
    sums[1].open_count = sums[1].open_pair
    return sums[1].open_pair * sums[1].open_pair


@njit
def double_all(address: int, count: int) -> int:
    numbers = rows(address, np.int32)
    total = 0
    for i in range(count):
        numbers[i] = numbers[i] * 2
        total += numbers[i]
    return total


@njit
def write_constant(address: int) -> None:
    rows(address, PAIR)[0].token = 1


def test_narrow_fields_come_out_wide_and_stores_stay_in_their_field() -> None:
    sums = np.zeros(3, SUM)
    for name in SUM.names:
        sums[name] = -7
    sums["open_pair"][1] = 2**31 - 1
    expected = sums.copy()
    expected["open_count"][1] = 2**31 - 1
    assert square_and_store(sums.ctypes.data) == (2**31 - 1) ** 2
    assert sums.tobytes() == expected.tobytes()


def test_numbers_are_read_and_written_in_place() -> None:
    numbers = np.array([-1, 0, 5, 99], np.int32)
    assert double_all(numbers.ctypes.data, 3) == 8
    assert numbers.tolist() == [-2, 0, 10, 99]


def test_a_field_said_to_stay_cannot_be_written() -> None:
    with pytest.raises(AssertionError, match="token"):
        write_constant(np.zeros(1, PAIR).ctypes.data)


def test_a_layer_with_more_than_int32_ids_is_refused(
    random_case: Callable[[int], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = random_case(3)
    monkeypatch.setattr(lowering, "NARROW_LIMIT", 8)
    with pytest.raises(ConfigError, match=f"tokens={case.workload.most_tokens} of 'random' make [0-9]+ segments"):
        case.engine()


def test_wire_times_beyond_the_table_are_those_of_the_table(
    random_case: Callable[[int], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(8):
        case = random_case(seed).with_program(exposed=frozenset())
        looked_up = case.engine().run().state
        monkeypatch.setattr(lowering, "MOST_WIRE_TIMES", 2)
        worked_out = case.engine().run().state
        monkeypatch.undo()
        assert looked_up.tokens.tobytes() == worked_out.tokens.tobytes(), seed


@njit
def prefetch_all(address: int, count: int) -> None:
    for i in range(count):
        prefetch(rows(address, SUM), i)


def test_prefetching_changes_nothing() -> None:
    sums = np.arange(3 * SUM.itemsize, dtype=np.uint8)
    expected = sums.copy()
    prefetch_all(sums.ctypes.data, 3)
    # It is a hint: memory that is not there does no harm.
    prefetch_all(0, 3)
    assert sums.tobytes() == expected.tobytes()
