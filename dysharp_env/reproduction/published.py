"""What the DySHARP paper (arXiv 2605.05607) reports: numbers from its text, statements where it gives only a figure.

Figures are not read off. Speed-ups are of DySHARP over the named schedule, (maximum, geometric mean) over the nine
combinations of ``PAPER_MODELS`` and ``PAPER_TOP_K`` on 32 GPUs.
"""

from __future__ import annotations

PAPER_MODELS = ("small", "medium", "large")
PAPER_TOP_K = (8, 16, 32)

LAYER_SPEEDUPS = {
    "deepep": (2.77, 2.26),
    "nvls": (6.93, 4.25),
    "fastermoe": (2.48, 2.14),
    "tutel": (2.32, 1.96),
    "ccfuser": (2.01, 1.84),
    "comet": (1.94, 1.78),
}
TRAINING_SPEEDUPS = {
    "deepep": (2.31, 1.93),
    "nvls": (5.12, 3.38),
    "fastermoe": (2.11, 1.84),
    "tutel": (1.98, 1.72),
    "ccfuser": (1.85, 1.63),
    "comet": (1.79, 1.59),
    "dualpipe": (1.88, 1.66),
}
# Share of the layer's time that communication takes, DeepSeek-V3 under phases on GH200 NVL32.
COMMUNICATION_SHARE = 0.704

GPU_COUNTS = (4, 8, 16, 32, 64)
# Beyond 32 GPUs the paper doubles the switches: 18 of them, one link of every GPU to each.
PLANES_OF_GPUS = {64: 18}
SEQUENCES = (1024, 2048, 4096, 8192, 16384)
NORMAL_SPREADS = (0.01, 0.02, 0.032, 0.04, 0.05)
POWER_EXPONENTS = (0.5, 1.0, 1.5, 2.0, 2.5)
INFERENCE_ROUTING = "power-law:1.5"
TILE_TOKENS = (64, 128, 256)

STATEMENTS = {
    "traffic": "nearly 50 % less than DeepEP",
    "nvls traffic": "more than DeepEP",
    "communication": "over 90 % of ideal on average",
    "no gain": "no speed-up by itself",
    "no faster than comet": "does not beat COMET",
    "gpus": "the gap grows with the number of GPUs",
    "sequence": "the gap grows with the sequence",
    "imbalance": "the gain persists",
    "tile": "tiles of 128 tokens are best",
}
