"""Tables of measured kernels and layers beside the engine: a program for every kind of kernel, errors, pictures."""
