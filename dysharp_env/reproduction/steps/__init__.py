"""What a whole step of a model costs: simulated MoE layers, rooflines around them, streams and pipelines of them."""
