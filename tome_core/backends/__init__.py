"""The backends of attention and merging: reference, padded batches, CPU kernels, CUDA kernels."""
