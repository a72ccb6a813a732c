"""The paper's tables: what is published, the simulated layers and steps that answer to it, and one beside the other."""
