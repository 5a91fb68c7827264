"""Kernels for NVIDIA GPUs in Triton, over packed buffers of tokens, image after image.

The kernels read token counts and positions from tensors on the device, so no new batch needs
compilation or tuning. The result for an image does not depend on the other images of its batch, bit
for bit. Each kernel has two entry points that do the same: an operator of PyTorch in the namespace
``tome``, which fake tensors and graphs can trace, and a plain function ``launch_...``, which costs
the host less. Tensors must lie on the current device.
"""
