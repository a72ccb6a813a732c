"""Policies: what chooses among candidates, and how weights are stored."""
