from __future__ import annotations

import numpy as np
import pytest

from dysharp_env.workload.statistics import remote_statistics
from dysharp_env.workload.traces import RoutingTrace


def test_remote_gpus_are_counted_from_home() -> None:
    # Four experts on two GPUs: 0 and 1 on the first. Homes are 0, 0, 1, 1.
    ids = np.array([[[0, 1], [1, 2], [2, 3], [0, -1]]])
    trace = RoutingTrace(ids, 4, np.array([0, 4]), np.array([0]))
    found = remote_statistics(trace, 2)
    assert found.share_of_r.tolist() == [0.5, 0.5, 0.0]  # tokens 0 and 2 stay at home
    assert found.at_home.tolist() == [pytest.approx(5 / 7)]
    # Where the trace says whose tokens they are, they are.
    own = RoutingTrace(ids, 4, np.array([0, 4]), np.array([0]), tokens_of_gpu=np.array([3, 1]))
    found = remote_statistics(own, 2)
    assert found.share_of_r.tolist() == [0.25, 0.75, 0.0] and found.at_home.tolist() == [pytest.approx(3 / 7)]
