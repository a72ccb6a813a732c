"""Dynamic multimem: its packets, the tables of switch and Hub, and what they compute.

``execute`` runs a finished schedule on real vectors.

Modelled: packets as bytes on every link they cross, requests, responses and acknowledgements included; routing by
expert with targets trimmed for each replica; merged acknowledgements; reduction in bounded slots with eviction; address
translation with AL tables, AL TLB and first-touch allocation, shared by dispatch and combine; fixed teams; plain stores
and loads; pushed sums; weights on their way to copies; the count exchange, create and bind; and the faults that
programs make.

Left out, and why the results do not need it:

- Time, queues, virtual channels, credits and arbitration: the simulator has them. Here a packet arrives before the next
  leaves, so what is tested is that any order of *transactions* computes the layer. No result depends on the order of
  packets within one: each names its block by algebraic index, and sums differ only in rounding.
- Planes: a packet is whole on one plane and all contributions to a sum share an address, hence a plane; so one switch
  with one port for each GPU computes what parallel ones do. Their reduction slots are pooled.
- Link errors, CRC and retry: links deliver every packet once. Byte enables: a packet writes all of its payload.
- Flags and notifications: when data may be used is what the schedule says, and using it too early is a fault.
- Virtual memory behind the Hub, memory scopes, and more than one dynamic region at a time.
- BF16 and FP8: all values are float32, so that a wrong sum cannot hide in the rounding of a right one.
- Other networks behind the NVLink domain.
"""

from dysharp_env.multimem.dense import MoeTensors, dense_moe, random_tensors
from dysharp_env.multimem.execute import Schedule, ScheduleRow, execute
from dysharp_env.multimem.runtime import Runtime

__all__ = ["MoeTensors", "Runtime", "Schedule", "ScheduleRow", "dense_moe", "execute", "random_tensors"]
