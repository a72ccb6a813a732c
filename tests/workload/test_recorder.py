"""The recorder on small modules in the shape of published MoE blocks, whose choices the test computes itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dysharp_env.config import ConfigError  # noqa: E402
from dysharp_env.workload.recorder import RoutingRecorder  # noqa: E402
from dysharp_env.workload.traces import load_trace  # noqa: E402

HIDDEN, EXPERTS, TOP_K, LAYERS = 8, 6, 2, 3


class Log:
    """What blocks chose, in the order in which they ran."""

    def __init__(self) -> None:
        self.ids: list[np.ndarray] = []


LOG = Log()


class MixtralBlock(torch.nn.Module):
    """Transformers 4: the gate is a linear layer, the block takes the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.top_k = EXPERTS, TOP_K
        self.gate = torch.nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(HIDDEN, HIDDEN) for _ in range(EXPERTS))

    def forward(self, hidden: Any) -> Any:
        flat = hidden.view(-1, HIDDEN)
        ids = self.gate(flat).softmax(-1).topk(self.top_k, dim=-1).indices
        LOG.ids.append(ids.numpy())
        return torch.tanh(flat).view_as(hidden)


class TopKRouter(torch.nn.Module):
    """Transformers 5: returns logits, scores and indices."""

    def __init__(self) -> None:
        super().__init__()
        self.top_k, self.num_experts = TOP_K, EXPERTS
        self.weight = torch.nn.Parameter(torch.randn(EXPERTS, HIDDEN))

    def forward(self, flat: Any) -> Any:
        logits = flat @ self.weight.T
        scores, ids = logits.softmax(-1).topk(self.top_k, dim=-1)
        return logits, scores / scores.sum(-1, keepdim=True), ids


class Qwen3Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = TopKRouter()
        self.gate_proj = torch.nn.Linear(HIDDEN, HIDDEN)  # a gate of another kind
        self.shared_expert_gate = torch.nn.Linear(HIDDEN, 1)

    def forward(self, hidden: Any) -> Any:
        _, _, ids = self.gate(hidden.view(-1, HIDDEN))
        LOG.ids.append(ids.numpy())
        return torch.tanh(self.gate_proj(hidden))


class MoEGate(torch.nn.Module):
    """DeepSeek-V3: sigmoid with a bias, whose output holds the indices."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_experts_per_tok=TOP_K, n_routed_experts=EXPERTS)
        self.weight = torch.nn.Parameter(torch.randn(EXPERTS, HIDDEN))
        self.e_score_correction_bias = torch.nn.Parameter(torch.randn(EXPERTS) * 2)

    def scores(self, hidden: Any) -> Any:
        return (hidden.view(-1, HIDDEN) @ self.weight.T).sigmoid()

    def forward(self, hidden: Any) -> Any:
        scores = self.scores(hidden)
        ids = (scores + self.e_score_correction_bias).topk(TOP_K, dim=-1, sorted=False).indices
        return ids, scores.gather(1, ids)


class LogitsGate(MoEGate):
    """The same, but the block chooses, and calls one module with its choice."""

    def forward(self, hidden: Any) -> Any:
        return hidden.view(-1, HIDDEN) @ self.weight.T


class DeepseekBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = MoEGate()

    def forward(self, hidden: Any) -> Any:
        ids, _ = self.gate(hidden)
        LOG.ids.append(ids.numpy())
        return torch.tanh(hidden)


class Experts(torch.nn.Module):
    def forward(self, hidden: Any, ids: Any, weights: Any) -> Any:
        return hidden


class DeepseekBlock5(torch.nn.Module):
    def __init__(self, has_experts: bool = True) -> None:
        super().__init__()
        self.gate = LogitsGate()
        if has_experts:
            self.experts = Experts()

    def forward(self, hidden: Any) -> Any:
        scores = self.gate(hidden).sigmoid()
        ids = (scores + self.gate.e_score_correction_bias).topk(TOP_K, dim=-1).indices
        LOG.ids.append(ids.numpy())
        if hasattr(self, "experts"):
            self.experts(hidden.view(-1, HIDDEN), ids, weights=scores.gather(1, ids))
        return torch.tanh(hidden)


class Model(torch.nn.Module):
    """A dense layer, then MoE layers; ``generate`` as Transformers does it: the prompt, then a token at a time."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(50, HIDDEN)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(HIDDEN, HIDDEN), *(block() for _ in range(LAYERS))])

    def forward(self, input_ids: Any = None, attention_mask: Any = None) -> Any:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return hidden

    @torch.no_grad()
    def generate(self, input_ids: Any, steps: int, attention_mask: Any = None) -> None:
        self(input_ids=input_ids, attention_mask=attention_mask)
        for step in range(steps):
            if attention_mask is not None:
                attention_mask = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1])], dim=1)
            self(input_ids=input_ids[:, step : step + 1] + step, attention_mask=attention_mask)


def chosen(model_layers: int, order: list[int]) -> np.ndarray:
    """Returns what was logged, (layer, token, k), tokens of passes one after the other and then in ``order``."""
    passes = [np.stack(LOG.ids[at : at + model_layers]) for at in range(0, len(LOG.ids), model_layers)]
    return np.concatenate(passes, axis=1)[:, order]


@pytest.mark.parametrize("block", [MixtralBlock, Qwen3Block, DeepseekBlock, DeepseekBlock5])
def test_choices_of_every_kind_of_block_are_recorded(block: Any, tmp_path: Path) -> None:
    LOG.ids = []
    model, prompt = Model(block), torch.arange(10).view(2, 5)
    with RoutingRecorder(model) as recorder:
        model.generate(prompt, steps=2)
    model.generate(prompt, steps=1)  # not recorded: the hooks are gone
    LOG.ids = LOG.ids[: 3 * LAYERS]
    # Tokens 0 to 9 are the prompts, 10 and 11 the first step, 12 and 13 the second.
    order = [0, 1, 2, 3, 4, 10, 12, 5, 6, 7, 8, 9, 11, 13]
    recorder.save(str(tmp_path / "t.npz"))
    trace = load_trace(str(tmp_path / "t.npz"))
    assert np.array_equal(trace.topk_ids, chosen(LAYERS, order))
    assert trace.layer_index.tolist() == [1, 2, 3] and trace.experts == EXPERTS
    assert trace.doc_offsets.tolist() == [0, 7, 14] and trace.topk_weights is not None
    assert recorder.trace("decode").topk_ids.tolist() == chosen(LAYERS, [10, 12, 11, 13]).tolist()
    assert [router.name for router in recorder.routers] == [f"layers.{number}.gate" for number in (1, 2, 3)]


def test_padding_is_left_out_and_every_prompt_is_a_document() -> None:
    LOG.ids = []
    model = Model(Qwen3Block)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with RoutingRecorder(model) as recorder:
        model.generate(torch.arange(8).view(2, 4), steps=1, attention_mask=mask)
        model.generate(torch.arange(3).view(1, 3), steps=0)
    trace = recorder.trace()
    assert np.array_equal(trace.topk_ids, chosen(LAYERS, [2, 3, 8, 4, 5, 6, 7, 9, 10, 11, 12]))
    assert trace.doc_offsets.tolist() == [0, 3, 8, 11] and trace.num_padding == 2


def test_what_cannot_be_recorded_is_said() -> None:
    with pytest.raises(ConfigError, match="Linear has no router: no module named 'gate' or 'router'"):
        RoutingRecorder(torch.nn.Linear(2, 2))
    model = Model(lambda: DeepseekBlock5(has_experts=False))
    with RoutingRecorder(model) as recorder:
        model.generate(torch.arange(3).view(1, 3), steps=0)
    message = r"router 'layers.1.gate' \(LogitsGate\) returns no ids, and its groups or bias change what its logits say"
    with pytest.raises(ConfigError, match=message):
        recorder.trace()
    with RoutingRecorder(model) as recorder:
        pass
    with pytest.raises(ConfigError, match="nothing was recorded"):
        recorder.save("x.npz")
