"""Tuning for one model on one machine: the layers, the search for plans, the choice, and the folder that is written."""
