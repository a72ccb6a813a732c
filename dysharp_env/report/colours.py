"""Colours of pictures and pages: they stay apart for the colour-blind (Okabe and Ito, "Color Universal Design", 2008).

What lies in one strip differs in lightness too, so that it stays apart where a picture is printed without colours.
"""

from __future__ import annotations

STAGES = {"dispatch": "#0072B2", "gemm1": "#009E73", "gemm2": "#CC79A7", "combine": "#E69F00"}
# What is not a stage: thread blocks that wait for HBM or communicate, what HBM moves, what rows found in L2, what
# software costs, and weights of copies on links.
BESIDE = {
    "stalled": "#A9D8F5",
    "communication": "#882255",
    "weights": "#56B4E9",
    "read": "#0B4F6C",
    "write": "#9DB4C0",
    "memory": "#56B4E9",
    "hits": "#7A6FAC",
    "software": "#868E96",
    "copying": "#F0E442",
}
ALL = {**STAGES, **BESIDE}
BOUND = "#D55E00"
GROUND = "#F1F3F5"  # of a strip
SHADE = "#CED4DA"  # over the strips, where software is at work on all GPUs
PAID = "#6C757D"  # what software does, where it is named
INK, FAINT = "#212529", "#6C757D"
# What strips show besides stages, as the legend has it.
BESIDE_NAMES = {
    "stalled": "thread blocks wait for HBM",
    "communication": "thread blocks communicate",
    "weights": "HBM: weights",
    "read": "HBM: other reads",
    "write": "HBM: writes",
    "hits": "found in L2",
    "copying": "weights of copies",
}
