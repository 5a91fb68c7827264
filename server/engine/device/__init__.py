"""What depends on the device: placement, the forward pass, the self check, CUDA graphs, memory transfers."""
