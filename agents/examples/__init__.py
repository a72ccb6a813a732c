"""Other people's learners on this environment, a script each, to be copied and changed.

``python -m agents.examples.NAME --minutes 2`` trains on two cores and says how the agent plays layers it has not seen,
beside random choices and the schedule's own rule. NAME is

- ``sb3_from_scratch``: MaskablePPO of sb3-contrib, and nothing of this package but the environment,
- ``cleanrl_style``: PPO in one file of plain torch, over the native vector environment,
- ``rllib_masked``: PPO of RLlib's new API stack, with two env runners,
- ``torchrl_masked``: PPO from the parts of TorchRL.

The last two need ``pip install 'dysharp-env[examples]'``. ``task`` is what they share: layers, and the comparison.
"""
