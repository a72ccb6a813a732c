"""Plans as a self-contained C99 header: constants, rule weights, and which plan a number of tokens takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dysharp_env.schedules import ScheduleSpec
from dysharp_env.simulator.state.observation import DECISION_KINDS, ENGINE_KINDS, FEATURES
from dysharp_env.system import SystemSpec


def header(plans: Sequence[ScheduleSpec], plan_of_tokens: dict[int, int], system: SystemSpec, what: str) -> str:
    """Returns the header.

    Args:
        plans: The plans.
        plan_of_tokens: Which of them each number of tokens per GPU takes.
        system: The machine.
        what: What they were tuned for, in a line.
    """
    kinds = [kind for kind in DECISION_KINDS if kind in ENGINE_KINDS]
    lines = [
        f"/* Tuned for {_plain(what)}.",
        " * Of what a group of SMs may take next the highest score is taken, the first of equals: the sum of weights",
        " * times features, which the user guide describes. */",
        "#ifndef DYSHARP_SCHEDULE_H",
        "#define DYSHARP_SCHEDULE_H",
        "",
        f"#define DYSHARP_NUM_SMS {system.gpu.num_sms}",
        f"#define DYSHARP_NUM_PLANS {len(plans)}",
        f"#define DYSHARP_NUM_KINDS {len(kinds)}",
        f"#define DYSHARP_NUM_FEATURES {len(FEATURES)}",
        "",
        f"enum dysharp_kind {{ {', '.join(f'DYSHARP_{kind.upper()}' for kind in kinds)} }};",
        "",
        "static const char *const dysharp_features[DYSHARP_NUM_FEATURES] = {",
        *(f'    "{name}",' for name in FEATURES),
        "};",
        "",
        "struct dysharp_plan {",
        "    const char *name, *dispatch, *combine; /* how tokens and sums travel */",
        "    int dispatch_sms, combine_sms, gemm_sms; /* of each GPU */",
        "    int chunk_tokens; /* of one dispatch or combine decision */",
        "    int min_partial_tokens; /* the fewest of a tile that is closed early */",
        "    int in_gemm; /* GEMM blocks send and add themselves */",
        "    int partial_tiles, hold; /* whether tiles are closed early, and groups may wait */",
        "    int prefetch; /* weights are fetched into L2: 1 once dispatch may begin, 2 while the kernel starts */",
        "    int expert_waves; /* tokens of the busiest experts are sent first */",
        "    int copies_experts, counts; /* experts are copied, counts exchanged before */",
        "    float weights[DYSHARP_NUM_KINDS][DYSHARP_NUM_FEATURES];",
        "};",
        "",
        "static const struct dysharp_plan dysharp_plans[DYSHARP_NUM_PLANS] = {",
        *(line for plan in plans for line in _plan(plan, system, kinds)),
        "};",
        "",
        *_choice(plan_of_tokens),
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _plan(plan: ScheduleSpec, system: SystemSpec, kinds: Sequence[str]) -> list[str]:
    num_sms = system.gpu.num_sms
    dispatch_sms, combine_sms = plan.sms.groups(num_sms)
    flags = (
        plan.sms.in_gemm,
        plan.partial_tiles,
        plan.hold,
        ("none", "ahead", "early").index(plan.prefetch),
        plan.token_order == "expert_waves",
        plan.replicate.makes_copies,
        "count_exchange" in plan.pays.dispatch,
    )
    matrix = plan.rule.matrix()
    return [
        f'    {{"{_quoted(plan.name)}", "{plan.dispatch}", "{plan.combine}",',
        f"     {dispatch_sms}, {combine_sms}, {plan.gemm_sms(num_sms)},",
        f"     {plan.chunk_tokens}, {plan.min_partial_tokens},",
        f"     {', '.join(str(int(flag)) for flag in flags)},",
        "     {",
        *(f"         {{{', '.join(map(_float, matrix[DECISION_KINDS.index(kind)]))}}}," for kind in kinds),
        "     }},",
    ]


def _choice(plan_of_tokens: dict[int, int]) -> list[str]:
    """Returns the function that chooses: the plan of the number of tokens that is nearest by ratio."""
    counts = sorted(plan_of_tokens)
    lines = ["/* Returns the place of the plan for so many tokens on each GPU. */"]
    lines += ["static inline int dysharp_plan_of(int tokens)", "{"]
    for count, after in zip(counts, counts[1:], strict=False):
        if plan_of_tokens[count] != plan_of_tokens[after]:
            lines += [f"    if (tokens <= {int((count * after) ** 0.5)})", f"        return {plan_of_tokens[count]};"]
    if len(set(plan_of_tokens.values())) == 1:
        lines.append("    (void)tokens;")
    return [*lines, f"    return {plan_of_tokens[counts[-1]]};", "}", ""]


def _float(value: float) -> str:
    text = np.format_float_positional(np.float32(value), unique=True, trim="0")
    return f"{text}f"


def _plain(text: str) -> str:
    """Returns text that cannot end a comment."""
    return text.replace("*/", "* /").replace("\n", " ")


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
