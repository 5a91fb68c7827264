"""Everything that depends on the device: placement, forward pass, self check, CUDA graphs."""
