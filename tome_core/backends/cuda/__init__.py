"""Kernels for NVIDIA GPUs, written in Triton, over a buffer in which the images of a batch lie one after the other.

Counts and places are read from tensors on the device, and nothing is compiled or tuned for the sake
of one that was not seen before. An image's result does not depend, bit by bit, on who shares its
batch. Each kernel is there twice: as an operator of PyTorch, in the namespace ``tome``, which fake
tensors and graphs understand, and as a plain function ``launch_...``, which costs the host less and
does the same. A tensor must lie on the current device.
"""
