"""Decisions on the sizes of SM groups: rows of ``splits``."""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.staffing import resize


@compiled
def act_split(s: Root, gpu: int) -> bool:
    """Returns True: whenever a GPU is marked it chooses its sizes."""
    return True


@compiled
def take_split(s: Root, gpu: int, row: int) -> bool:
    """Gives the GPU's groups the sizes that were chosen, once for each mark."""
    item = s.candidates[row].item
    if item != s.gpus[gpu].split:
        resize(s, gpu, item)
    return False


@compiled
def list_splits(s: Root, gpu: int, limit: int) -> int:
    """Lists what a GPU has first, so that a rule with no weights keeps it, and then the other rows."""
    present = s.gpus[gpu].split if s.split_done else 0
    count = min(s.num_splits, limit)
    for i in range(count):
        s.candidates[i].item = present if i == 0 else i - 1 if i <= present else i
    return count


@compiled
def describe_split(s: Root, item: int, row: int) -> None:
    """Describes a row of ``splits``."""
    f = s.features[row]
    sizes = s.splits[item]
    f.split_dispatch = sizes.dispatch_sms / s.num_sms
    f.split_combine = sizes.combine_sms / s.num_sms
    f.split_early = max(0.0, 1.0 - sizes.early_tokens / s.tile_tokens)
