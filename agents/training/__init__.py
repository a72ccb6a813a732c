"""Training: one file for each algorithm, and the run folders that they write."""
