"""A distilled rule as a self-contained C99 header: the values it looks at, its weights, and the choices."""

from __future__ import annotations

import numpy as np

from agents.policies.rule import WISHES, Linear, RowRule, Rule
from dysharp_env.schedules.spec import NEVER_EARLY

_MEMBER = "c->"  # how the function reaches a context value


def header(rule: Rule) -> str:
    """Returns the header: a function that returns the split to take, and one that scores a GEMM row if the rule does.

    Sums run in order in float32, to the bit where the compiler does not fuse multiplications and additions
    (``-ffp-contract=off``); fused, a tie could fall to the other.
    """
    members = [f"    float {name}; /* {meaning} */" for name, meaning in rule.context.items()]
    splits = [f"    {{{dispatch}, {combine}, {fewest}}}," for dispatch, combine, fewest in rule.triples()]
    wishes = [line for name, wish in rule.wishes.items() for line in _wish(name, wish)]
    lines = [
        f"/* The rule '{_plain(rule.name)}': {_plain(rule.description)}",
        *_when(rule.split_moments),
        f" * Taken is {rule.tie}. */",
        "#ifndef DYSHARP_RULE_H",
        "#define DYSHARP_RULE_H",
        "",
        "#include <math.h>",
        "",
        f"#define DYSHARP_NUM_SPLITS {len(rule.splits)}",
        "",
        '/* All values lie in [0, 1]; "root" of a time: sqrt(time / lower bound), cut at 1. */',
        "struct dysharp_context {",
        *members,
        "};",
        "",
        "/* Dispatch SMs, combine SMs, and the fewest tokens of an open tile that may be closed early (",
        f" * {NEVER_EARLY}: none may). */",
        "static const int dysharp_splits[DYSHARP_NUM_SPLITS][3] = {",
        *splits,
        "};",
        "",
        "/* Returns the row of dysharp_splits to take on a GPU of num_sms SMs, with tiles of tile_tokens tokens. */",
        "static inline int dysharp_split(const struct dysharp_context *c, int num_sms, int tile_tokens)",
        "{",
        *(f"    float {name};" for name in rule.wishes),
        "    float nearest = INFINITY;",
        "    int best = 0;",
        "",
        *wishes,
        "    for (int row = 0; row < DYSHARP_NUM_SPLITS; ++row) {",
        "        const int *split = dysharp_splits[row];",
        "        const float dispatch = (float)(split[0] / (double)num_sms);",
        "        const float combine = (float)(split[1] / (double)num_sms);",
        "        const float early = (float)fmax(0.0, 1.0 - split[2] / (double)tile_tokens);",
        *_distance(),
        "        if (away < nearest) {",
        "            nearest = away;",
        "            best = row;",
        "        }",
        "    }",
        "    return best;",
        "}",
        "",
        *(_rows(rule.rows) if rule.rows else []),
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _when(moments: int) -> list[str]:
    """Returns when splits are asked for."""
    if not moments:
        return [" * For SM-group sizes it is asked once, at the start."]
    return [
        " * For SM-group sizes it is asked on each GPU at the start, and again after every",
        f" * 1/{moments} of the tokens it dispatches and of its sums that may be combined, and at the first of these.",
    ]


def _rows(rows: RowRule) -> list[str]:
    """Returns the struct and the function that score a row."""
    asked = ["ready rows", *["open tiles, to be closed early"] * rows.partial_tiles, *["waiting"] * rows.hold]
    sums = []
    for name, weight in rows.weights.items():
        sums += [*_wish("weight", weight), f"    score += weight * r->{name};"]
    return [
        f"/* What a GPU's GEMM SMs may take next: {', '.join(asked)}. */",
        "struct dysharp_row {",
        *(f"    float {name}; /* {meaning} */" for name, meaning in rows.features.items()),
        "};",
        "",
        "/* Returns the score of a row; the highest is taken, the first of equals. */",
        "static inline float dysharp_row_score(const struct dysharp_context *c, const struct dysharp_row *r)",
        "{",
        "    float score = 0.0f;",
        "    float weight;",
        "",
        *sums,
        *(["    (void)c;"] if not any(weight.weights for weight in rows.weights.values()) else []),
        "    return score;",
        "}",
        "",
    ]


def _distance() -> list[str]:
    terms = [f"{_float(weight)} * fabsf({name.removeprefix('split_')} - {name})" for name, weight in WISHES.items()]
    return [f"        float away = {terms[0]};", *(f"        away += {term};" for term in terms[1:])]


def _wish(name: str, wish: Linear) -> list[str]:
    """Returns the C statements that set a variable to a linear function of context values."""
    sums = [f"    {name} += {_float(weight)} * {_MEMBER}{of};" for of, weight in wish.weights.items()]
    return [f"    {name} = {_float(wish.constant)};", *sums]


def _float(value: float) -> str:
    """Returns a C literal of the float32 nearest to a number."""
    text = np.format_float_scientific(np.float32(value), unique=True, trim="-")
    return f"{text}f" if "e" in text else f"{text}.0f"


def _plain(text: str) -> str:
    """Returns text that cannot end a comment."""
    return text.replace("*/", "* /").replace("\n", " ")
