"""Plans a workload: the same tokens, served by other physical experts."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from dysharp_env.config import ConfigError
from dysharp_env.schedules.replication.planners import plan
from dysharp_env.schedules.replication.serving import shared_out
from dysharp_env.schedules.replication.sharing import Sharing
from dysharp_env.schedules.replication.spec import ReplicateSpec
from dysharp_env.workload import Workload
from dysharp_env.workload.eplb import eplb_placement
from dysharp_env.workload.replicas import serve

# Whoever plays a workload again and again plans it once. None: the plan changes nothing.
_planned: WeakKeyDictionary[Workload, dict[ReplicateSpec, Workload | None]] = WeakKeyDictionary()


def planned(workload: Workload, spec: ReplicateSpec) -> Workload:
    """Returns the workload as a planner shares it out: itself, if that changes nothing.

    Raises:
        ConfigError: The planner places replicas before the layer, and nobody knows an earlier batch; or there are
            copies already.
    """
    if spec.planner == "none":
        return workload
    plans = _planned.setdefault(workload, {})
    if spec not in plans:
        found = _placed(workload, spec) if spec.planner == "eplb" else _copied(workload, spec)
        plans[spec] = None if found is workload else found
    return plans[spec] or workload


def slots_of(spec: ReplicateSpec, experts: int, num_gpus: int) -> int:
    """Returns how many experts a GPU has room for besides its own."""
    if spec.slots == "any":
        return experts
    return -(-experts // num_gpus) if spec.slots == "experts" else spec.slots


def _copied(workload: Workload, spec: ReplicateSpec) -> Workload:
    if workload.placement.num_copies:
        raise ConfigError(f"planner={spec.planner}: workload '{workload.name}' has copies already")
    sharing = Sharing.of(workload, slots_of(spec, workload.layer.experts, workload.num_gpus))
    before = sharing.quota.copy()
    plan(sharing, spec)
    return shared_out(workload, before, sharing, spec.most_sends)


def _placed(workload: Workload, spec: ReplicateSpec) -> Workload:
    if workload.past_loads is None:
        raise ConfigError(
            f"planner=eplb needs the loads of an earlier batch, which workload '{workload.name}' does not have"
        )
    experts, num_gpus = workload.layer.experts, workload.num_gpus
    slots = min(experts, -(-experts // num_gpus) + slots_of(spec, experts, num_gpus))
    placement = eplb_placement(workload.past_loads, num_gpus, slots)
    served = serve(workload.logical_ids, workload.first_token, placement, spec.replicas)
    return workload.served_by(served, placement)
