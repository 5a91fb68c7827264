"""How attention and merging are executed: the reference, padded batches, CPU kernels, CUDA kernels."""
