"""The order of tokens in chunks, by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from dysharp_env.simulator.result import schedule_table
from dysharp_env.simulator.state.ordering import token_order
from dysharp_env.simulator.twin.routing import token_order as twins_order
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.placement import Placement
from dysharp_env.workload.workload import Workload
from tests.conftest import Case

# Two GPUs with experts 0, 1 and 2, 3. Tokens per expert: 2, 4, 1, 5, so on each GPU the second expert has rank 0.
IDS = [[0, 2], [1, 3], [0, 3], [1, 3], [3, 1], [3, 1]]


def small_layer() -> LayerSpec:
    shape = {"hidden": 64, "moe_ff": 64, "experts": 4, "top_k": 2, "ffn_matrices": 2}
    return LayerSpec(name="small", **shape, compute_dtype="bf16", source="test")


def small_workload() -> Workload:
    return Workload.even(small_layer(), 2, np.array(IDS), np.array([0, 0, 1, 1]), "by hand")


def test_natural_order_is_that_of_the_workload() -> None:
    assert token_order(small_workload(), waves=False).tolist() == [0, 1, 2, 3, 4, 5]


def test_waves_put_tokens_of_the_busiest_experts_first_on_every_gpu() -> None:
    # Ranks of the tokens' experts, sorted: (1, 1), (0, 0), (0, 1) on GPU 0; (0, 0) three times on GPU 1.
    assert token_order(small_workload(), waves=True).tolist() == [1, 2, 0, 3, 4, 5]


def test_experts_that_a_token_lacks_rank_behind_all() -> None:
    # GPU 0 has four tokens, GPU 1 none, GPU 2 two. Physical experts 0 and 2 are on GPU 0, with 1 and 3 tokens, 1 on GPU
    # 1 with 1; 3 and 4 on GPU 2 with 3 and 1: ranks 1, 0, 0, 0, 1.
    placement = Placement(3, np.array([0, 1, 0, 2, 2]), np.array([0, 1, 2, 3, 3]))
    ids = np.array([[0, 3], [-1, -1], [2, -1], [2, 3], [3, 1], [2, 4]])
    workload = Workload(small_layer(), np.array([4, 0, 2]), ids, placement, "by hand")
    for order in (token_order(workload, waves=True).tolist(), twins_order(workload, waves=True)):
        # Ranks of GPU 0's tokens: (0, 1), none, (0, none), (0, 0); of GPU 2's: (0, 0), (0, 1).
        assert order == [3, 0, 2, 1, 4, 5]


def test_chunks_of_the_engine_hold_tokens_in_that_order(random_case: Callable[..., Case]) -> None:
    def is_reordered(case: Case) -> Any:
        return (token_order(case.workload, case.program.waves) != np.arange(case.workload.num_tokens)).any()

    for even in (True, False):
        cases = (random_case(seed, even) for seed in range(200))
        case = next(case for case in cases if not case.program.exposed and is_reordered(case))
        workload, size = case.workload, case.program.chunk_tokens
        order = token_order(workload, waves=True)
        engine = case.engine().run()
        expected = [
            sorted(order[first : min(first + size, end)].tolist())
            for start, end in pairwise(workload.first_token.tolist())
            for first in range(start, end, size)
        ]
        chunks = engine.state.tokens["chunk"][:-1]
        assert [np.flatnonzero(chunks == chunk).tolist() for chunk in range(len(expected))] == expected
        for row in schedule_table(engine):
            if row.stage == "combine":
                members = expected[int(row.item.removeprefix("chunk "))]
                assert (row.tokens, row.gpu) == (len(members), workload.home_of_token[members[0]])
