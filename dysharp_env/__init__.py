"""Scheduling a Mixture-of-Experts layer on a simulated multi-GPU NVSwitch system with dynamic multimem.

Importing this package registers ``DySHARP/TokenSchedule-v0`` with Gymnasium.
"""

import gymnasium

from dysharp_env.config import ConfigError

__version__ = "0.1.0"
__all__ = ["ConfigError", "__version__"]

gymnasium.register(
    id="DySHARP/TokenSchedule-v0",
    entry_point="dysharp_env.envs.token_schedule:TokenScheduleEnv",
)
