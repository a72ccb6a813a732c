"""How plain functions become the compiled engine: typed memory, compilation, and the cache of machine code."""
