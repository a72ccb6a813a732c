"""Tiny layers that are solved exactly."""
