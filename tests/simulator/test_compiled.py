"""Functions that compiled code calls are compiled once each."""

from numba import njit

from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place


@compiled
def weigh(kind: int, weight: int) -> int:
    return weight * 2 if kind == 1 else weight


@compiled_in_place
def twice(weight: int) -> int:
    return weigh(1, weight)


@njit
def weigh_all(weight: int) -> int:
    return weigh(1, weight) + weigh(2, weight) * 10 + weigh(weight, 7) * 100 + twice(weight) * 1000


def test_constants_as_arguments_compile_nothing_anew() -> None:
    assert weigh_all(3) == 6 + 30 + 700 + 6000
    assert len(weigh.signatures) == 1
