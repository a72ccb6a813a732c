"""Scheduling a Mixture-of-Experts layer on a simulated multi-GPU NVSwitch system with dynamic multimem.

Importing this package registers ``DySHARP/TokenSchedule-v2`` with Gymnasium, and ``DySHARP/TokenScheduleMasked-v2``,
whose observations hold the mask.

What the model contains, what it leaves out and by how much it errs is a page of the guide: ``python -m dysharp_env docs
model-and-limits``, or ``docs/model-and-limits.md`` in this package. Dynamic multimem itself does not exist in hardware:
its instructions, queues and tables are as DySHARP (arXiv 2605.05607) describes them, and where it does not, as the
modules here say.
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
