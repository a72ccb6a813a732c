"""A layer from the ``config.json`` that a model hub keeps beside a model's weights.

The files come from many authors, who name the same things differently; what is read of one is only what a layer needs.
Left out: what surrounds the layer in its model, and experts without a gate, which no such file tells from others.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dysharp_env.config import ConfigError, Notice, read_yaml

# The names of each number, the most particular first: ``intermediate_size`` is a dense layer's where both stand.
_NAMES = {
    "experts": ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"),
    "hidden": ("hidden_size",),
    "moe_ff": ("moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size", "intermediate_size"),
    "top_k": ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "experts_per_token"),
}
_MORE = {
    "shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    "zero_experts": ("zero_expert_num",),
    "n_group": ("n_group",),
    "topk_group": ("topk_group",),
}
_LANGUAGE = ("text_config", "language_config", "llm_config")  # of models that see or hear too
# Formats by how a file says that weights are quantised.
_FORMATS = {
    "fp8": {"dispatch_dtype": "fp8", "compute_dtype": "fp8"},
    "mxfp4": {"compute_dtype": "bf16", "weight_dtype": "mxfp4"},
    "": {"compute_dtype": "bf16"},
}


def read_hub_config(path: Path) -> dict[str, Any]:
    """Returns the fields of a ``LayerSpec`` that a configuration says; weights of a kind not known are taken as BF16.

    Raises:
        ConfigError: The file cannot be read, or it is not of a model with experts.
    """
    whole = read_yaml(path)  # which JSON is a part of
    config = next((whole[name] for name in _LANGUAGE if isinstance(whole.get(name), dict)), whole)
    fields = {}
    for field, names in _NAMES.items():
        found = _first(config, names)
        if found is None:
            sought = " or ".join(f"'{name}'" for name in names)
            raise ConfigError(f"'{path}': no {sought} is in it; is it of a model with experts?")
        fields[field] = found
    fields |= {field: found for field, names in _MORE.items() if (found := _first(config, names)) is not None}
    name = str(whole.get("_name_or_path") or whole.get("model_type") or path.parent.name or "model")
    return {
        "name": Path(name).name,
        "ffn_matrices": 3,
        "source": str(path),
        **fields,
        **_formats(config.get("quantization_config") or whole.get("quantization_config"), path),
    }


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def _formats(quantization: object, path: Path) -> dict[str, str]:
    method = str(quantization.get("quant_method", "")) if isinstance(quantization, dict) else ""
    if method not in _FORMATS:
        warnings.warn(
            Notice(
                f"'{path}': weights quantised by '{method[:40]}' are taken as BF16; a model file can say their format"
            ),
            stacklevel=2,
        )
    return _FORMATS.get(method, _FORMATS[""])
