"""Evaluation: paired comparisons, intervals, and what results are taken apart by."""
