"""The mistakes that a program can make with dynamic multimem, each made by a whole layer with one step wrong."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from dysharp_env.multimem.faults import (
    AddressFault,
    BindFault,
    CountFault,
    MultimemFault,
    PlainAccessFault,
    TargetFault,
    UndispatchedFault,
)
from dysharp_env.multimem.packets import Kind, Stage
from dysharp_env.multimem.runtime import Runtime

TOPK_IDS = np.array([[0, 3], [1, 2], [2, 5], [3, 0], [4, 1], [5, 0]])  # 3 GPUs with 2 tokens and 2 experts each
BLOCK_BYTES = 64
TOKENS = np.arange(6 * 16, dtype=np.float32).reshape(6, 16)


class LayerProgram:
    """A layer whose experts double what they receive; those who make mistakes override a step."""

    region_tokens = len(TOPK_IDS)

    def run(self) -> np.ndarray:
        self.runtime = Runtime(np.arange(6) // 2, num_gpus=3)
        self.region = self.runtime.create_region(BLOCK_BYTES, self.region_tokens)
        self.runtime.bind(self.counts())
        for token in self.dispatched():
            self.dispatch(token)
        for expert, tokens in enumerate(np.argwhere(TOPK_IDS == expert)[:, 0] for expert in range(6)):
            hub = self.runtime.hubs[expert // 2]
            rows = hub.rows(expert, tokens)
            rows = rows[rows >= 0]  # those that have arrived
            hub.write_rows(Stage.COMBINE, expert, rows, 2 * hub.read_rows(Stage.DISPATCH, expert, rows))
        sums = np.stack([self.combine(token) for token in range(len(TOPK_IDS))])
        self.runtime.check_idle()
        return sums

    def counts(self) -> np.ndarray:
        return self.runtime.exchange_counts(np.split(TOPK_IDS, 3))

    def dispatched(self) -> list[int]:
        return list(range(len(TOPK_IDS)))

    def address(self, token: int) -> int:
        return self.region.address(token)

    def targets(self, token: int) -> tuple[int, ...]:
        return tuple(TOPK_IDS[token].tolist())

    def num_targets(self, token: int) -> int:
        return len(self.targets(token))

    def dispatch(self, token: int) -> None:
        self.runtime.dymultimem_st(
            token // 2, TOKENS[token], self.address(token), self.num_targets(token), self.targets(token), Stage.DISPATCH
        )

    def combine(self, token: int) -> np.ndarray:
        return self.runtime.dymultimem_ld_reduce(
            token // 2, BLOCK_BYTES, self.region.address(token), 2, tuple(TOPK_IDS[token].tolist()), Stage.COMBINE
        )


class RegionForOneGpuLess(LayerProgram):
    region_tokens = 4

    def counts(self) -> np.ndarray:
        return self.runtime.exchange_counts(np.split(TOPK_IDS, 3)).clip(max=4)


class AddressOfTheNextLayer(LayerProgram):
    def address(self, token: int) -> int:
        return self.region.end + token * BLOCK_BYTES


class ExpertsNumberedFromOne(LayerProgram):
    def targets(self, token: int) -> tuple[int, ...]:
        return tuple((TOPK_IDS[token] + 1).tolist())


class CountOfTopOne(LayerProgram):
    def num_targets(self, token: int) -> int:
        return 1


class CountsOfAnotherBatch(LayerProgram):
    def counts(self) -> np.ndarray:
        return self.runtime.exchange_counts(np.split(TOPK_IDS // 2, 3))


class BoundForMore(LayerProgram):
    def counts(self) -> np.ndarray:
        return self.runtime.exchange_counts(np.split(TOPK_IDS, 3)) + (np.arange(6) == 4)


class TokenDropped(LayerProgram):
    def dispatched(self) -> list[int]:
        return [0, 1, 2, 3, 5]


class ResultReadByAPlainLoad(LayerProgram):
    def combine(self, token: int) -> np.ndarray:
        return self.runtime.plain.ld(token // 2, BLOCK_BYTES, self.region.address(token), Stage.COMBINE)


class TokenWrittenByAPlainStore(LayerProgram):
    def dispatch(self, token: int) -> None:
        self.runtime.plain.st(token // 2, TOKENS[token], self.region.address(token), Stage.DISPATCH)


def test_a_layer_without_mistakes_runs() -> None:
    np.testing.assert_array_equal(LayerProgram().run(), 4 * TOKENS)  # two experts, twice the token each


@pytest.mark.parametrize(
    ("program", "fault", "message"),
    [
        (
            RegionForOneGpuLess,
            AddressFault,
            "address is outside the region 0x800000000000 to 0x800000000100 [DYNAMIC_STORE stage=DISPATCH"
            " address=0x800000000100 source=GPU 2 length=64 count=2 targets=[4, 1]]",
        ),
        (
            AddressOfTheNextLayer,
            AddressFault,
            "address is outside the region 0x800000000000 to 0x800000000180 [DYNAMIC_STORE stage=DISPATCH"
            " address=0x800000000180 source=GPU 0 length=64 count=2 targets=[0, 3]]",
        ),
        (
            ExpertsNumberedFromOne,
            TargetFault,
            "target 6 is no expert; there are 6 [DYNAMIC_STORE stage=DISPATCH address=0x800000000080 source=GPU 1"
            " length=64 count=2 targets=[3, 6]]",
        ),
        (
            CountOfTopOne,
            CountFault,
            "target count 1, but 2 targets are listed [DYNAMIC_STORE stage=DISPATCH address=0x800000000000"
            " source=GPU 0 length=64 count=1 targets=[0, 3]]",
        ),
        (
            CountsOfAnotherBatch,
            BindFault,
            "expert 3 was bound for 0 tokens, not 1 [DYNAMIC_STORE stage=DISPATCH address=0x800000000000"
            " source=GPU 0 length=64 count=1 targets=[3]]",
        ),
        (
            TokenDropped,
            UndispatchedFault,
            "token 4 was never dispatched to expert 4 [DYNAMIC_LOAD stage=COMBINE address=0x800000000100"
            " source=GPU 2 length=64 count=1 targets=[4]]",
        ),
        (
            ResultReadByAPlainLoad,
            PlainAccessFault,
            "plain access to a multimem address [LOAD stage=COMBINE address=0x800000000000 source=GPU 0 length=64"
            " count=0]",
        ),
        (
            TokenWrittenByAPlainStore,
            PlainAccessFault,
            "plain access to a multimem address [WRITE stage=DISPATCH address=0x800000000000 source=GPU 0 length=64"
            " count=0]",
        ),
    ],
)
def test_a_mistake_raises_its_fault_with_the_packet(program: type[Any], fault: type[Any], message: str) -> None:
    with pytest.raises(fault, match=f"^{re.escape(message)}$") as caught:
        program().run()
    assert isinstance(caught.value, MultimemFault) and caught.value.packet.kind in Kind


def test_an_expert_bound_for_more_tokens_than_come_is_found_at_the_end() -> None:
    message = "expert 4 was bound for 2 tokens and received 1; its AL table holds 1"
    with pytest.raises(CountFault, match=f"^{message}$"):
        BoundForMore().run()
