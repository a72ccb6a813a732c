"""Scheduling a Mixture-of-Experts layer on a simulated multi-GPU NVSwitch system with dynamic multimem.

Importing this package registers ``DySHARP/TokenSchedule-v2`` with Gymnasium, and ``DySHARP/TokenScheduleMasked-v2``,
whose observations hold the mask.

What this model leaves out
==========================

Before believing a number, know what it does not contain. Where the effect has been measured, by ``python -m dysharp_env
validate`` unless another command is named, it is given.

Links and switch
    - The physical layer: lanes, CRC, replay, power states. Packets arrive whole, once. Byte-enable flits are not
      charged.
    - Flow control is free: credits take the latency of a link back and no bandwidth.
    - Acknowledgements, counter updates and read requests take bandwidth from the link they cross when they cross
      it, and go before data; only requests wait for their uplink. They never queue in the switch.
    - At token resolution an output serves vector after vector, where packets take turns. Against packets on their
      planes that is within 2 % on the workloads of ``validate``, and up to 8 % too fast with ``queueing:
      input_fifo``.
    - The hash that picks planes, the crossbar inside a switch, its arbitration time and the sizes of its route and
      group tables are not public. Here any mix of flows that fits the ports fits the crossbar, and virtual output
      queues fill links to 97 %. What hardware reaches is less, by kernel: ``link.efficiency``, which falls with the
      number of GPUs, and the ``extra_flits`` of families stand for it.
    - Planes of unequal width (a DGX H100 wires its 18 links 5/4/4/5) and faults: dead planes, lost
      packets.
    - What in-switch operations lose is flits (``link.multimem_flits``), set by all-reduces of 8 H100 and of 72 GB200;
      reduction units themselves keep up with their ports. Dynamic multimem is taken to lose as much as static.

GPU
    - A communication SM is what its family of kernels costs for a token, a vector and a byte; a vector leaves when the
      SM's work on it is done, where hardware streams. Its instructions, registers and shared memory are not there. How
      a family starts (``start_us``) is measured for kernels that exist; DySHARP's instructions are taken to start like
      plain stores, and kernels that dispatch and compute like Mega MoE (``fused_start_us``), the one that was measured.
    - An SM changes its group, where ``split_moments`` lets it, when it has nothing to do, and is away for
      ``role_change_us``, which was set, not measured.
    - A GEMM thread block takes a fixed time and its K steps. No two-block clusters, no multicast of operands, no
      autotuned tile shapes (grouped GEMMs of few rows are up to 12 % too fast). What a block's own loads and stores to
      other GPUs cost it is all that slows it; those of other SMs do not.
    - L2 holds weights and activations in one order of use, whose oldest bytes give way first: no sets, no hashing, no
      policy of its own. That both partitions (or dies) hold what all SMs read is one factor on its capacity, for
      activations too. Hits are free, and its bandwidth has no limit. A thread block that runs keeps nothing there.
    - HBM is one first-come-first-served server: no banks, no turnarounds. A row waits for what it reads and L2 lacks;
      what is written stays in L2 until it gives way, and what is there at the end of the layer is never written back.
      A home GPU reads each of its tokens once, in the format in which it is sent, and nothing waits for that; the
      experts' sums that are home already, and those that are pushed home, are added without using memory.
    - Weights fetched ahead (``prefetch``) come matrix by matrix, at no cost but HBM's time.
    - Weights of copies made in the layer move in tiles, by SMs that cost what their family does on other vectors, from
      the opening of dispatch on or behind it; a kernel's start is not theirs. HBM serves each tile, which does not
      wait for its turn there. Against MoonEP's fetches on GB200 that is 4 to 5 % too slow. Planning takes a fixed time,
      however many tokens and copies there are. A tile is one segment, on one plane; gradients of copies come home after
      the last token, at line rate.
    - Clocks do not change with power or temperature. Mega MoE of 8192 tokens and more on GB200 comes out 6 to 10 % too
      fast.
    - A page table never misses. The Hub's tables cost a memory latency where they miss or spill, and no bandwidth.

Software
    - Launches, barriers and the count exchange are constants. No jitter, no host that is late, and no straggler but
      one GPU whose thread blocks take longer by a constant factor (``slow_gpu``), which the lower bound leaves out.
    - Kernels between phases are closed forms of launch and HBM traffic (simulator/phases.py). They do not overlap each
      other, warm L2 or share HBM with what still runs. Fused kernels that store tokens are taken to cast and activate
      in passing.
    - A decision takes no time. Routers are not in a layer, shared experts only where a schedule's ``shared_experts``
      says so; ``reproduce`` adds attention and dense parts of a step as rooflines.
    - Rivals are schedules of this engine, not their code; the header of each file says what is simplified.

Layer and machine
    - One layer, one NVLink domain. Networks between nodes are not there: pipeline stages cost nothing to pass.
    - A backward pass is a forward pass with twice the GEMM work. With ``weight_gradients: deferred`` its GEMMs compute
      gradients of inputs, what is recomputed beside them, and those of weights follow the last token at all SMs, at the
      GEMMs' rate; the lower bound leaves them out. Gradients of the router are not there.
    - A layer ends when its last sum is home and its last copy has its weights; acknowledgements still under way, and
      writes still to be made, do not count.
    - Times do not depend on values. ``multimem.execute`` computes in float32 what a schedule computes, to show that
      it is right; what BF16 and FP8 round away is not shown.

What binds where
================

``python -m dysharp_env explain`` says for any layer and schedule what binds and what the last token waited for; the
README has a table for DeepSeek-V3 on 8 H200. Few tokens per GPU: memory, which streams expert weights, and then what
software costs. Many: in phases links, which stand beside the GEMMs, and memory, which kernels between phases read and
write; overlapped, memory, and compute behind it. One whose rows do not keep to the weights that L2 has waits for memory
at any size.

And dynamic multimem itself does not exist in hardware: its instructions, queues and tables are as DySHARP (arXiv
2605.05607) describes them, and where it does not, as the modules here say.
"""

import gymnasium
from gymnasium.envs.registration import WrapperSpec

from dysharp_env.config import ConfigError

__version__ = "0.1.0"
__all__ = ["ConfigError", "__version__"]

gymnasium.register(
    id="DySHARP/TokenSchedule-v2",
    entry_point="dysharp_env.envs.token_schedule:TokenScheduleEnv",
    vector_entry_point="dysharp_env.envs.vector:TokenScheduleVectorEnv",
)
gymnasium.register(
    id="DySHARP/TokenScheduleMasked-v2",
    entry_point="dysharp_env.envs.token_schedule:TokenScheduleEnv",
    additional_wrappers=(WrapperSpec("MaskInObservation", "dysharp_env.envs.wrappers:MaskInObservation", {}),),
)
