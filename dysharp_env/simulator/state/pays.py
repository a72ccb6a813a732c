"""What gates and the end of a layer pay for kernels between phases, which follows the routing."""

from __future__ import annotations

import numpy as np

from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.faults import LATE_GPU
from dysharp_env.simulator.phases import COPY_GRADIENTS, SHARED, START, Load
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state.codes import NOTHING, OPENS_ALL, OPENS_GEMM1
from dysharp_env.simulator.state.copies import gradients_ps
from dysharp_env.simulator.state.state import State
from dysharp_env.simulator.weights import WeightCosts
from dysharp_env.workload.workload import Workload

_DISPATCH, _END = 0, 4


class KernelPays:
    """Adds to states of one program what its kernels take."""

    def __init__(self, costs: Costs, program: Program, num_sms: int) -> None:
        """Notes the kernels that are not free."""
        self._costs, self._hbm_ps, self._program = costs, costs.hbm_ps, program
        self._kernels = [
            [(name, kernel) for name in (START, *names) for kernel in costs.phase_kernels(stage, (name,))]
            for stage, names in enumerate(program.kernels)
        ]
        # Hidden shared experts have the SMs that dispatch leaves.
        self._hidden = costs.phase_kernels(_DISPATCH, (SHARED,) if program.hides_shared else ())
        self._hidden_sms = num_sms - program.dispatch_sms, num_sms
        paid = [kernel for kernels in self._kernels for _, kernel in kernels]
        # Counting what GPUs receive takes a walk over all pairs.
        self._counts_received = any(kernel.received_bytes for kernel in paid)
        self._is_free = not paid and not self._hidden

    def add_to(self, state: State, workload: Workload) -> None:
        """Writes what is paid into the gates, the first event, which opens dispatch, and the end."""
        if self._is_free:
            return
        totals, of_parts = self._loads(state, workload)
        before_ps = self._busiest_ps(_DISPATCH, totals)
        state.heap["time_ps"][0] += before_ps
        state.gates["pay_ps"][0] += before_ps
        state.root["pay_end_ps"] = self._program.pay_end_ps + self._busiest_ps(_END, totals)
        shared_end_ps = self._shared_ends_ps(workload, int(state.heap["time_ps"][0]))
        for gate in state.gates:
            stage, gpu = int(gate["stage"]), int(gate["gpu"])
            if stage == OPENS_ALL:
                continue
            loads = of_parts[int(gate["part"])]
            gate["pay_ps"] += self._busiest_ps(stage + 1, loads if gpu == NOTHING else [loads[gpu]])
            if stage == OPENS_GEMM1:
                gate["not_before_ps"] = max(shared_end_ps) if gpu == NOTHING else shared_end_ps[gpu]

    def _shared_ends_ps(self, workload: Workload, open_ps: int) -> list[int]:
        """Returns when each GPU's hidden shared experts are over, which begin as dispatch opens; 0 without any."""
        if not self._hidden:
            return [0] * workload.num_gpus
        loads = [Load(tokens=tokens) for tokens in workload.tokens_of_gpu.tolist()]
        sms = self._hidden_sms
        late_ps = self._costs.faults.late_ps
        begins_ps = [open_ps + late_ps * (self._program.meets or gpu == LATE_GPU) for gpu in range(len(loads))]
        took_ps = [sum(kernel.ps(load, self._hbm_ps, sms) for kernel in self._hidden) for load in loads]
        return [begin_ps + ps for begin_ps, ps in zip(begins_ps, took_ps, strict=True)]

    def named_ps(self, state: State, workload: Workload, stage: int, part: int, gpu: int) -> list[tuple[str, int]]:
        """Returns the kernels of a stage, 0 to 4, by name, with what each takes the GPU that has most to do.

        ``part`` and ``gpu`` are those of its gate; dispatch and the end have none.
        """
        gradients = self._copy_gradients(workload) if stage == _END else []
        if not self._kernels[stage]:
            return gradients
        totals, of_parts = self._loads(state, workload)
        loads = totals if stage in (_DISPATCH, _END) else of_parts[part]
        return self._busiest(stage, loads if gpu == NOTHING else [loads[gpu]]) + gradients

    def _copy_gradients(self, workload: Workload) -> list[tuple[str, int]]:
        weights = WeightCosts.of(self._costs, self._program, workload)
        took_ps = gradients_ps(self._costs, weights, workload.placement) if weights else 0
        return [(COPY_GRADIENTS, took_ps)] if took_ps else []

    def _busiest_ps(self, stage: int, loads: list[Load]) -> int:
        return sum(ps for _, ps in self._busiest(stage, loads)) if self._kernels[stage] else 0

    def _busiest(self, stage: int, loads: list[Load]) -> list[tuple[str, int]]:
        times = ([(name, kernel.ps(load, self._hbm_ps)) for name, kernel in self._kernels[stage]] for load in loads)
        return max(times, key=lambda named: sum(ps for _, ps in named))

    def _loads(self, state: State, workload: Workload) -> tuple[list[Load], list[list[Load]]]:
        """Returns what each GPU has to do with in all, and of each part."""
        num_gpus, parts = workload.num_gpus, self._program.parts
        experts = state.experts
        place = experts["gpu"] * parts + experts["part"]
        rows = np.bincount(place, weights=experts["total"], minlength=num_gpus * parts)
        chosen = np.bincount(workload.gpu_of_expert, weights=workload.demand.expert_tokens > 0, minlength=num_gpus)
        received = rows
        sent = workload.demand.local_pairs + workload.demand.remote_pairs
        if self._program.copies_per_expert:
            experts = workload.experts_of_token
            sent = np.bincount(workload.home_of_token, weights=experts, minlength=num_gpus).astype(np.int64)
        elif self._counts_received:
            place, used = state.pairs["gpu"] * parts + state.pairs["part"], state.pairs["num_experts"] > 0
            received = np.bincount(place, weights=used, minlength=num_gpus * parts)
        # Whole numbers below 2**53 as floats; plain integers from here on.
        received_of, rows_of = (table.reshape(num_gpus, parts).astype(np.int64).tolist() for table in (received, rows))
        gpus = range(num_gpus)
        totals = [
            Load(tokens, int(sent[gpu]), sum(received_of[gpu]), sum(rows_of[gpu]), int(chosen[gpu]))
            for gpu, tokens in enumerate(workload.tokens_of_gpu.tolist())
        ]
        of_parts = [
            [Load(received=received_of[gpu][part], rows=rows_of[gpu][part]) for gpu in gpus] for part in range(parts)
        ]
        return totals, of_parts
