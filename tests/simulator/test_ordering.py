"""The order of tokens in chunks, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dysharp_env.simulator.result import schedule_table
from dysharp_env.simulator.state.ordering import token_order
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.workload import Workload
from tests.conftest import Case

# Two GPUs with experts 0, 1 and 2, 3. Tokens per expert: 2, 4, 1, 5, so on each GPU the second expert has rank 0.
IDS = [[0, 2], [1, 3], [0, 3], [1, 3], [3, 1], [3, 1]]


def small_workload() -> Workload:
    shape = {"hidden": 64, "moe_ff": 64, "experts": 4, "top_k": 2, "ffn_matrices": 2}
    layer = LayerSpec(name="small", **shape, compute_dtype="bf16", source="test")
    return Workload.even(layer, 2, np.array(IDS), np.array([0, 0, 1, 1]), "by hand")


def test_natural_order_is_that_of_the_workload() -> None:
    assert token_order(small_workload(), waves=False).tolist() == [0, 1, 2, 3, 4, 5]


def test_waves_put_tokens_of_the_busiest_experts_first_on_every_gpu() -> None:
    # Ranks of the tokens' experts, sorted: (1, 1), (0, 0), (0, 1) on GPU 0; (0, 0) three times on GPU 1.
    assert token_order(small_workload(), waves=True).tolist() == [1, 2, 0, 3, 4, 5]


def test_chunks_of_the_engine_hold_tokens_in_that_order(random_case: Callable[[int], Case]) -> None:
    def is_reordered(case: Case) -> Any:
        return (token_order(case.workload, case.program.waves) != np.arange(case.workload.num_tokens)).any()

    case = next(case for case in map(random_case, range(60)) if not case.program.exposed and is_reordered(case))
    order = token_order(case.workload, waves=True)
    engine = case.engine().run()
    size, bounds = case.program.chunk_tokens, case.workload.first_token.tolist()
    expected = [
        sorted(order[first : min(first + size, end)].tolist())
        for home, end in zip(bounds, bounds[1:], strict=False)
        for first in range(home, end, size)
    ]
    chunks = engine.state.tokens["chunk"][:-1]
    assert [np.flatnonzero(chunks == chunk).tolist() for chunk in range(len(expected))] == expected
    for row in schedule_table(engine):
        if row.stage == "combine":
            members = expected[int(row.item.removeprefix("chunk "))]
            assert (row.tokens, row.gpu) == (len(members), case.workload.home_of_token[members[0]])
