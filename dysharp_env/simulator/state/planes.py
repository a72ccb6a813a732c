"""Which plane a segment takes: a deterministic hash of its multimem address.

Addresses count segments. The dispatch region comes first, then the combine region; in each, a vector lies at its
algebraic index, which is the token's number, and its segments follow each other.

No public source gives the hash of real switches. This one does what address hashes are for: any aligned run of as many
addresses as there are planes uses every plane once, so long transfers are spread evenly, and each run starts at a plane
of its own (multiplicative hashing, Knuth, TAOCP vol. 3, 6.4), so short vectors and strides do not all meet on one.
"""

from __future__ import annotations

import numpy as np

from dysharp_env.simulator.costs import Costs

# 2**64 over the golden ratio, made odd; the product's upper bits are the well mixed ones.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_UPPER = np.uint64(40)


def plane_of(address: np.ndarray, planes: int) -> np.ndarray:
    """Returns the plane of every address, int64 of the same shape."""
    run, place = np.divmod(np.asarray(address, np.int64), planes)
    turn = (run.astype(np.uint64) * _GOLDEN >> _UPPER).astype(np.int64)
    return (place + turn) % planes


def vector_planes(costs: Costs, num_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the planes of (token, segment), once for dispatched vectors and once for partial and reduced sums."""
    dispatch, combine = num_tokens * costs.dispatch_segments, num_tokens * costs.combine_segments
    planes = plane_of(np.arange(dispatch + combine), costs.planes)
    return planes[:dispatch].reshape(num_tokens, -1), planes[dispatch:].reshape(num_tokens, -1)
