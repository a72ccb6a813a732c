"""Distillation: small rules that are fitted to policies."""
