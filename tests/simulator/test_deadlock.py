"""No run gets stuck, however small the buffers: 1,000 random layers under every queueing discipline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from dysharp_env.simulator.state import codes
from dysharp_env.system import FamilySpec
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES, FAMILIES
from tests.conftest import Case

GROUPS, CASES_PER_GROUP = 10, 100
FIRST_SEED = 50_000


def with_smallest_buffers(case: Case, queueing: str) -> Case:
    """Returns the case on the smallest machine that ``SystemSpec`` lets through.

    One virtual channel of one packet, reduction units and communication SMs that hold one packet, tables of one entry,
    and four SMs, so that whichever group gets a second one takes it from another.
    """
    packet, families = case.costs.packet, case.costs.families
    one = {name: FamilySpec(vectors=1) for name in FAMILIES}
    costs = dataclasses.replace(
        case.costs,
        queueing=queueing,
        credit_flits=packet.header_flits + families.multimem_flits + packet.payload_bytes // packet.flit_bytes,
        reduction_slots=1,
        families=dataclasses.replace(families, specs=one, multimem_bytes=packet.payload_bytes),
        al_tlb_entries=1,
        tile_status_entries=1,
        output_readiness_entries=1,
    )
    splits = tuple(((1, 2), (2, 1), (1, 1))[i % 3] + split[2:] for i, split in enumerate(case.program.splits))
    few = {"dispatch_sms": 1, "gemm_sms": 2, "combine_sms": 1, "splits": splits}
    return case._replace(costs=costs, num_sms=4).with_program(**few)


@pytest.mark.parametrize("queueing", codes.QUEUEING)
@pytest.mark.parametrize("group", range(GROUPS))
def test_smallest_buffers_never_deadlock(random_case: Callable[[int], Case], queueing: str, group: int) -> None:
    first = FIRST_SEED + group * CASES_PER_GROUP
    for seed in range(first, first + CASES_PER_GROUP):
        rng = np.random.default_rng(seed)
        engine = with_smallest_buffers(random_case(seed), queueing).engine(logging=False)
        # An engine in which nothing can happen any more, with tokens left, raises.
        while (asked := engine.advance()) is not None:
            engine.decide(int(rng.choice(np.flatnonzero(asked.mask))))
        has_experts = engine.workload.experts_of_token > 0
        assert ((engine.state.tokens["combine_end"][:-1] >= 0) == has_experts).all(), seed


def test_random_layers_use_every_pair_of_primitives(random_case: Callable[[int], Case]) -> None:
    programs = [random_case(seed).program for seed in range(FIRST_SEED, FIRST_SEED + GROUPS * CASES_PER_GROUP)]
    found = {(program.dispatch.name, program.combine.name) for program in programs}
    assert found == {(dispatch, combine) for dispatch in DISPATCH_PRIMITIVES for combine in COMBINE_PRIMITIVES}
