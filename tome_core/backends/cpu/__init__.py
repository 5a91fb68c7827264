"""C++ kernels for x86 processors with AVX-512, and the layers and buffers that use them."""
