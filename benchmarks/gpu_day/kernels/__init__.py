"""Step 7: each Triton kernel checked, and timed beside other cuts of its work and beside PyTorch's operators."""
