"""From a plan to a workload: which of an expert's tokens go to which copy, and where each copy's weights come from."""

from __future__ import annotations

import heapq
from collections import defaultdict

import numpy as np

from dysharp_env.native import native
from dysharp_env.schedules.replication.sharing import Sharing
from dysharp_env.workload import Workload
from dysharp_env.workload.placement import NOWHERE, Placement


def shared_out(workload: Workload, before: np.ndarray, sharing: Sharing, most_sends: int | None) -> Workload:
    """Returns the workload with the copies and quotas of a plan.

    Of an expert whose quotas the plan changed, tokens stay on their home GPU first if that has it, as many as its quota
    allows; the rest, in the order of their numbers, fill the GPUs' quotas in the order of theirs. Tokens of the other
    experts stay with the physical expert that they had.

    Args:
        workload: What was planned.
        before: (expert, gpu) tokens of each logical expert that each GPU would have computed.
        sharing: The plan.
        most_sends: Copies that a GPU sends one expert to at most; None: any number.
    """
    changed = (sharing.quota != before).any(axis=1)
    if not changed.any():
        return workload
    wanted = [copy for copy in sharing.copies if sharing.quota[copy] > 0]
    placement = with_copies(workload.placement, wanted, most_sends)
    # The last write stays: of several on a GPU the first.
    physical = np.full(sharing.quota.shape, -1, np.int32)
    numbers = np.arange(len(placement))[::-1]
    physical[placement.logical_of_expert[numbers], placement.gpu_of_expert[numbers]] = numbers
    at_home = np.minimum(sharing.counts, sharing.quota.T)  # (gpu, expert)
    served = workload.topk_ids.copy()
    _serve(
        served,
        workload.first_token,
        workload.placement.logical_of_expert,
        changed,
        at_home,
        sharing.quota - at_home.T,
        physical,
    )
    return workload.served_by(served, placement)


def with_copies(placement: Placement, copies: list[tuple[int, int]], most_sends: int | None) -> Placement:
    """Returns the placement with copies behind its own physical experts, and trees that their weights come down.

    The roots of an expert's tree are the physical experts that hold it before the layer. A copy hangs as high up as it
    can, from whoever there sends fewest. Experts with most copies come first, and of an expert's copies those on the
    GPUs that send least so far: those are the relays (load-aware, as in UltraEP, arXiv 2606.04101).

    Args:
        placement: Where experts are before the layer.
        copies: Logical expert and GPU of each.
        most_sends: Children of a node at most; None: any number, so that all copies come from the roots.
    """
    gpus_of: dict[int, list[int]] = defaultdict(list)
    for expert, gpu in copies:
        gpus_of[expert].append(gpu)
    gpu_of_expert, logical, sources = (
        array.tolist() for array in (placement.gpu_of_expert, placement.logical_of_expert, placement.copied_from)
    )
    sends = [0] * placement.num_gpus
    for expert in sorted(gpus_of, key=lambda expert: (-len(gpus_of[expert]), expert)):
        # (depth, children so far, number)
        nodes = [(0, 0, number) for number in np.flatnonzero(placement.logical_of_expert == expert).tolist()]
        for gpu in sorted(gpus_of[expert], key=lambda gpu: (sends[gpu], gpu)):
            depth, children, parent = heapq.heappop(nodes)
            if most_sends is None or children + 1 < most_sends:
                heapq.heappush(nodes, (depth, children + 1, parent))
            heapq.heappush(nodes, (depth + 1, 0, len(sources)))
            sends[gpu_of_expert[parent]] += 1
            gpu_of_expert.append(gpu)
            logical.append(expert)
            sources.append(parent)
    assert all(source != NOWHERE for source in sources[len(placement) :])
    return Placement(placement.num_gpus, np.array(gpu_of_expert), np.array(logical), np.array(sources))


@native(error_model="numpy")
def _serve(
    topk_ids: np.ndarray,
    first_token: np.ndarray,
    logical_of_expert: np.ndarray,
    changed: np.ndarray,
    at_home: np.ndarray,
    elsewhere: np.ndarray,
    physical: np.ndarray,
) -> None:
    """Gives tokens their physical experts, in place.

    Args:
        topk_ids: (token, k) the physical experts that they had.
        first_token: (gpu + 1,) the first token of each GPU, and the end.
        logical_of_expert: (physical,) the logical expert of those.
        changed: (expert,) whether anything about a logical expert is new.
        at_home: (gpu, expert) tokens of each GPU that stay on it; used up.
        elsewhere: (expert, gpu) tokens of others that each GPU computes; used up.
        physical: (expert, gpu) what a logical expert is there.
    """
    next_gpu = np.zeros(len(changed), np.int64)
    for home in range(len(first_token) - 1):
        for token in range(first_token[home], first_token[home + 1]):
            for place in range(topk_ids.shape[1]):
                if topk_ids[token, place] < 0:
                    break
                expert = logical_of_expert[topk_ids[token, place]]
                if not changed[expert]:
                    continue
                gpu = home
                if at_home[home, expert] > 0:
                    at_home[home, expert] -= 1
                else:
                    while elsewhere[expert, next_gpu[expert]] == 0:
                        next_gpu[expert] += 1
                    gpu = next_gpu[expert]
                    elsewhere[expert, gpu] -= 1
                topk_ids[token, place] = physical[expert, gpu]
