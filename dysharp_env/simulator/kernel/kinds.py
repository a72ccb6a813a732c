"""What each kind of decision does: the functions of ``choices/``, called by the kind."""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.kernel.choices import combine, dispatch, gemm, prefetch, split
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.state.observation import COMBINE, DISPATCH, GEMM, PREFETCH


@compiled_in_place
def act(s: Root, kind: int, gpu: int) -> bool:
    """Does what an SM group has no choice in, as long as it can; True if something has to be chosen then."""
    if kind == DISPATCH:
        return dispatch.act_dispatch(s, gpu)
    if kind == PREFETCH:
        return prefetch.act_prefetch(s, gpu)
    if kind == GEMM:
        return gemm.act_gemm(s, gpu)
    if kind == COMBINE:
        return combine.act_combine(s, gpu)
    return split.act_split(s, gpu)


@compiled_in_place
def list_of_kind(s: Root, kind: int, gpu: int, limit: int) -> int:
    """Fills ``candidates`` but for hold, at most ``limit``, and returns how many there are."""
    if kind == DISPATCH:
        return dispatch.list_chunks(s, gpu, limit)
    if kind == PREFETCH:
        return prefetch.list_matrices(s, gpu, limit)
    if kind == GEMM:
        return gemm.list_rows(s, gpu, limit)
    if kind == COMBINE:
        return combine.list_units(s, gpu, limit)
    return split.list_splits(s, gpu, limit)


@compiled
def may_hold(s: Root, kind: int, gpu: int) -> bool:
    """Returns whether a group that is offered hold may take it now."""
    if kind == PREFETCH:
        # Rows fetch what they need themselves.
        return True
    return gemm.may_hold_gemm(s, gpu) if kind == GEMM else combine.may_hold_combine(s, gpu)


@compiled
def measure_backlogs(s: Root, kind: int) -> None:
    """Measures the links that candidates of a kind would meet."""
    if kind == COMBINE and s.combine.reads:
        combine.measure_uplinks(s)
    elif kind == DISPATCH or kind == COMBINE:
        dispatch.measure_downlinks(s)


@compiled
def describe_of_kind(s: Root, kind: int, gpu: int, row: int, walks: bool) -> None:
    """Fills in what is shown of a candidate that is not hold."""
    item = s.candidates[row].item
    if kind == DISPATCH:
        dispatch.describe_chunk(s, item, row, walks)
    elif kind == PREFETCH:
        prefetch.describe_matrix(s, gpu, row, walks)
    elif kind == GEMM:
        gemm.describe_row(s, gpu, row, walks)
    elif kind == COMBINE:
        combine.describe_unit(s, item, row, walks)
    else:
        split.describe_split(s, item, row)


@compiled
def take(s: Root, kind: int, gpu: int, row: int) -> bool:
    """Lets a chosen candidate have its effect; False if the group has nothing to go on with then."""
    if kind == DISPATCH:
        return dispatch.take_chunk(s, gpu, row)
    if kind == PREFETCH:
        return prefetch.take_matrix(s, gpu, row)
    if kind == GEMM:
        return gemm.take_row(s, gpu, row)
    if kind == COMBINE:
        return combine.take_unit(s, gpu, row)
    return split.take_split(s, gpu, row)
