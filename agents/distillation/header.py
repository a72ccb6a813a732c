"""A distilled rule as a self-contained C99 header: the values it looks at, its weights, and the choices."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

import numpy as np

from dysharp_env.schedules import load_schedule
from dysharp_env.schedules.spec import NEVER_EARLY
from dysharp_env.simulator.state.observation import CANDIDATE_MEANINGS, CONTEXT, FEATURES, DecisionKind

from ..policies.rule import WISHES, Linear, Rule, SplitRule

_MEMBER = "c->"  # how the functions reach a context value


def header(rule: Rule) -> str:
    """Returns the header: for each kind of decision what weighs and scores candidates, and what returns a split.

    Sums run in order in float32, as the engine's do: to the bit where the compiler does not fuse multiplications and
    additions (``-ffp-contract=off``); fused, a tie could fall to the other. Where the rule decides on splits the engine
    adds a number to all scores, so there two that are alike up to rounding may change places.
    """
    members = [f"    float {name}; /* {_plain(rule.context[name])} */" for name in CONTEXT if name in rule.context]
    lines = [
        f"/* The rule '{_plain(rule.name)}': {_plain(rule.description)}",
        f" * It decides, over the schedule '{_plain(rule.schedule)}', on kinds {', '.join(rule.kinds)}.",
        *_when(rule.split),
        " */",
        "#ifndef DYSHARP_RULE_H",
        "#define DYSHARP_RULE_H",
        "",
        *(["#include <math.h>", ""] if rule.split else []),
        f"#define DYSHARP_MAX_CANDIDATES {rule.max_candidates} /* of one decision */",
        "",
        '/* All values lie in [0, 1]; "root" of a time: sqrt(time / lower bound), cut at 1. */',
        "struct dysharp_context {",
        *(members or ["    float none; /* the rule looks at nothing */"]),
        "};",
        "",
        *(_plans(rule) if "plan" in rule.weights else []),
        *(line for kind in rule.kinds if kind != "split" for line in _kind(rule, kind, rule.weights[kind])),
        *(_splits(rule, rule.split) if rule.split else []),
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _when(split: SplitRule | None) -> list[str]:
    """Returns when splits are asked for, and what is taken of equals."""
    if split is None:
        return []
    taken = f" * Taken is {split.tie}."
    if not split.moments:
        return [" * For SM-group sizes it is asked once, at the start.", taken]
    return [
        " * For SM-group sizes it is asked on each GPU at the start, and again after every",
        f" * 1/{split.moments} of the tokens it dispatches and of its sums that may be combined, and at the first of",
        " * these.",
        taken,
    ]


def _plans(rule: Rule) -> list[str]:
    """Returns a comment that lists the plans."""
    options = load_schedule(rule.schedule).options
    return [
        f"/* The plans of '{_plain(rule.schedule)}', in the order in which they are shown. What a machine cannot run",
        " * is not shown, and those behind it move up.",
        *(f" * {place:2} {_plain(option.name)}" for place, option in enumerate(options)),
        " */",
        "",
    ]


def _kind(rule: Rule, kind: DecisionKind, weights: Mapping[str, Linear]) -> list[str]:
    """Returns the struct of what is weighed in a kind, and the functions that make weights and score a candidate."""
    if not weights:
        return [f"/* Of candidates of kind {kind} the first is taken. */", ""]
    struct, shown = f"struct dysharp_{kind}_features", [name for name in FEATURES if name in weights]
    looks = any(weights[name].weights for name in shown)
    return [
        *_comment(f"Of kind {kind} the candidates are {CANDIDATE_MEANINGS[kind]}. What is shown of one and counts:"),
        f"{struct} {{",
        *(f"    float {name}; /* {_plain(rule.features[name])} */" for name in shown),
        "};",
        "",
        "/* Returns what each feature counts, the same for all candidates of a decision. */",
        f"static inline {struct} dysharp_{kind}_weights(const struct dysharp_context *c)",
        "{",
        f"    {struct} w;",
        "",
        *(line for name in shown for line in _sum(f"w.{name}", weights[name])),
        *([] if looks else ["    (void)c;"]),
        "    return w;",
        "}",
        "",
        "/* Returns the score of a candidate; the highest is taken, the first of equals. */",
        f"static inline float dysharp_{kind}_score(const {struct} *w, const {struct} *f)",
        "{",
        "    float score = 0.0f;",
        "",
        *(f"    score += w->{name} * f->{name};" for name in shown),
        "    return score;",
        "}",
        "",
    ]


def _splits(rule: Rule, split: SplitRule) -> list[str]:
    """Returns the splits on offer and the function that chooses one."""
    return [
        f"#define DYSHARP_NUM_SPLITS {len(split.offered)}",
        "",
        "/* Dispatch SMs, combine SMs, and the fewest tokens of an open tile that may be closed early (",
        f" * {NEVER_EARLY}: none may). */",
        "static const int dysharp_splits[DYSHARP_NUM_SPLITS][3] = {",
        *(f"    {{{dispatch}, {combine}, {fewest}}}," for dispatch, combine, fewest in rule.triples()),
        "};",
        "",
        "/* Returns the row of dysharp_splits to take on a GPU of num_sms SMs, with tiles of tile_tokens tokens. */",
        "static inline int dysharp_split(const struct dysharp_context *c, int num_sms, int tile_tokens)",
        "{",
        *(f"    float {name};" for name in split.wishes),
        "    float nearest = INFINITY;",
        "    int best = 0;",
        "",
        *(line for name, wish in split.wishes.items() for line in _sum(name, wish)),
        *([] if any(wish.weights for wish in split.wishes.values()) else ["    (void)c;"]),
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
    ]


def _distance() -> list[str]:
    terms = [f"{_float(weight)} * fabsf({name.removeprefix('split_')} - {name})" for name, weight in WISHES.items()]
    return [f"        float away = {terms[0]};", *(f"        away += {term};" for term in terms[1:])]


def _sum(name: str, linear: Linear) -> list[str]:
    """Returns the C statements that set a variable to a linear function of context values."""
    return [
        f"    {name} = {_float(linear.constant)};",
        *(f"    {name} += {_float(linear.weights[of])} * {_MEMBER}{of};" for of in _in_order(linear.weights)),
    ]


def _comment(text: str) -> list[str]:
    """Returns lines of a comment."""
    return ["/* " + "\n * ".join(textwrap.wrap(_plain(text), 110)) + " */"]


def _in_order(names: Iterable[str]) -> list[str]:
    """Returns context values in the order in which the engine adds them."""
    return sorted(names, key=CONTEXT.index)


def _float(value: float) -> str:
    """Returns a C literal of the float32 nearest to a number."""
    text = np.format_float_scientific(np.float32(value), unique=True, trim="-")
    return f"{text}f" if "e" in text else f"{text}.0f"


def _plain(text: str) -> str:
    """Returns text that cannot end a comment."""
    return text.replace("*/", "* /").replace("\n", " ")
