"""Records real routing: a tiny MoE language model reads the sources of Python's own standard library.

Any machine that runs this package has that text, so a recording can be remade without downloading anything. The model
(``tiny_moe``) is trained on most of the files; the documents recorded are files it never saw. Text becomes tokens by a
lexical vocabulary: frequent words, operators and indentations are one token each, everything else is spelt in bytes,
which makes a token of Python about as long as a large model's.
"""

from __future__ import annotations

import platform
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from dysharp_env.config import ConfigError, Spec
from dysharp_env.workload.traces import RoutingTrace

VOCABULARY = 2048  # ids; the first 256 are the bytes
HELD_OUT_EVERY = 8  # one file in so many is kept for recording
DOCUMENT_TOKENS = 512  # a longer file is cut, so that a recording holds many documents
_PIECE = re.compile(r"\n *|[A-Za-z]+|[0-9]| +|_+|[^\sA-Za-z0-9_]+|\s")
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "ensurepip"}


class RecordingSpec(Spec):
    """What to train and how much of its routing to record."""

    steps: int = Field(default=1500, ge=1, le=1_000_000)
    """Training steps of 16 windows of 128 tokens."""
    tokens: int = Field(default=16384, ge=DOCUMENT_TOKENS, le=10_000_000)
    """Tokens recorded, rounded down to whole documents of 512."""
    experts: int = Field(default=64, ge=2, le=65536)
    """Routed experts of a layer."""
    top_k: int = Field(default=6, ge=1)
    """Experts a token uses."""
    seed: int = Field(default=0, ge=0)
    """Fixes initial weights, training windows and the choice of documents."""

    @model_validator(mode="after")
    def _top_k_within_experts(self) -> RecordingSpec:
        if self.top_k > self.experts:
            raise ValueError(f"top_k={self.top_k} is more than experts={self.experts}")
        return self


def standard_library_files() -> list[Path]:
    """Returns the standard library's source files without its tests, sorted by path.

    Raises:
        ConfigError: This Python has no sources on disk.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [path for path in sorted(root.rglob("*.py")) if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts)]
    if len(files) < HELD_OUT_EVERY * 2:
        raise ConfigError(f"'{root}' holds {len(files)} source files; recording needs the standard library's sources")
    return files


class Vocabulary:
    """Maps text to token ids: frequent pieces are one id, all others are spelt in bytes."""

    def __init__(self, texts: Iterable[str], size: int = VOCABULARY) -> None:
        counts = Counter(piece for text in texts for piece in _PIECE.findall(text) if len(piece) > 1)
        # Ties are broken by the piece itself, so the vocabulary does not depend on the order of files.
        frequent = sorted(counts, key=lambda piece: (-counts[piece], piece))[: size - 256]
        self.size = 256 + len(frequent)
        self._ids = {piece: 256 + index for index, piece in enumerate(frequent)}

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of ``text`` as a uint16 array."""
        ids: list[int] = []
        for piece in _PIECE.findall(text):
            known = self._ids.get(piece)
            if known is None:
                ids.extend(piece.encode("utf-8"))
            else:
                ids.append(known)
        return np.array(ids, dtype=np.uint16)


def record(spec: RecordingSpec, command: str, on_step: Callable[[int, float], None]) -> RoutingTrace:
    """Returns the routing of held-out standard-library files under a model trained as ``spec`` says.

    The same spec, Python version and torch version give the same recording on the same kind of processor. It keeps the
    ``command`` line that makes it; ``on_step`` is that of ``tiny_moe.train``.

    Raises:
        ConfigError: The held-out files hold fewer tokens than asked for.
    """
    files = standard_library_files()
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    training = [text for index, text in enumerate(texts) if index % HELD_OUT_EVERY]
    held_out = texts[::HELD_OUT_EVERY]
    vocabulary = Vocabulary(training)
    documents = [ids[:DOCUMENT_TOKENS] for ids in map(vocabulary.encode, held_out) if len(ids) >= DOCUMENT_TOKENS]
    wanted = spec.tokens // DOCUMENT_TOKENS
    if wanted > len(documents):
        raise ConfigError(
            f"tokens={spec.tokens} is more than the held-out files give; at most {len(documents) * DOCUMENT_TOKENS}"
        )
    rng = np.random.default_rng(spec.seed)
    chosen = [documents[index] for index in rng.permutation(len(documents))[:wanted]]

    import torch

    from dysharp_env.workload import tiny_moe

    corpus = np.concatenate([vocabulary.encode(text) for text in training])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would train another model; it is too small to gain from more
    try:
        model = tiny_moe.train(corpus, vocabulary.size, spec.experts, spec.top_k, spec.steps, spec.seed, on_step)
        parts = [tiny_moe.routing_of(model, document) for document in chosen]
    finally:
        torch.set_num_threads(threads)
    return RoutingTrace(
        topk_ids=np.concatenate([ids for ids, _ in parts], axis=1),
        topk_weights=np.concatenate([weights for _, weights in parts], axis=1).astype(np.float16),
        doc_offsets=np.arange(wanted + 1, dtype=np.int32) * DOCUMENT_TOKENS,
        layer_index=np.arange(1, tiny_moe.LAYERS, dtype=np.int64),
        experts=spec.experts,
        source=f"Python {platform.python_version()} standard library, torch {torch.__version__}, made by: {command}",
    )
