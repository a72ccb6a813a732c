"""What software costs: what each schedule pays or avoids, whatever the layer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dysharp_env.config import Spec
from dysharp_env.system.numbers import Micros

# What schedules may pay whatever the layer, and the settings that say how long it takes: the start of the first kernel
# and of one behind another, what one that dispatches and computes takes besides, a barrier, an exchange of counts, and
# planning copies of experts.
OVERHEADS = {
    "launch": "launch_us",
    "gap": "launch_gap_us",
    "fused_start": "fused_start_us",
    "barrier": "barrier_us",
    "count_exchange": "count_exchange_us",
    "plan": "plan_us",
}


class OverheadSpec(Spec):
    """Costs of software that each schedule pays or avoids, microseconds."""

    launch_us: Micros
    """Start of the first kernel of a layer, or of one that the host launches by itself."""
    launch_gap_us: Micros = 1.5
    """Start of a kernel right behind another, both launched beforehand: set, within the 1 to 2 us that profiles of
    back-to-back kernels show; no row of any table was used."""
    fused_start_us: Micros = 0.0
    """What a kernel that dispatches and computes takes before it does, beside what its family of kernels takes."""
    layout_ns_per_token: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 12.0
    """Counting a token's destinations in a kernel of its own, nanoseconds a token: set by DeepEP's log of its layout
    kernel, 0.054 ms (0.049 elsewhere) at 4096 tokens, top-8 of 256 (deepseek-ai/DeepEP issue 261)."""
    phase_kernels: bool = True
    """Whether kernels between phases (quantise, layout, permute, activation, final sum) take time; false leaves them
    out, for machines whose source does not count them."""
    barrier_us: Micros
    """One barrier among 8 GPUs inside a kernel."""
    count_exchange_us: Micros
    """Exchange of per-expert token counts before a dispatch whose receivers must know sizes."""
    barrier_per_doubling_us: Micros = 0.0
    """What it takes longer with each doubling of the GPUs, or less with each halving, a round trip at least."""
    plan_us: Micros = 36.0
    """Planning which experts are copied where and which tokens go to the copies, among 8 GPUs: MoonEP's kernel takes 43
    us at 1024 tokens a GPU and 51 at 8192, top-8 of 896 experts on 8 H200, measured, its exchange of counts included
    (zhumakhan/MoonEP, varlen_moon_ep.md at 30c2f8c); so less an exchange of counts."""
    plan_per_doubling_us: Micros = 20.0
    """What it takes longer with each doubling of the GPUs beyond 8: set, so that 64 GPUs take what UltraEP stays within
    at that size (100 us; Dots-Infra/UltraEP, docs/blog_v1.md)."""
    role_change_us: Micros = 0.0
    """Time in which an SM that changes over between communication and GEMMs does neither."""
