"""Learned schedules: training, evaluation, policies, and the adaptor to Stable-Baselines3."""
