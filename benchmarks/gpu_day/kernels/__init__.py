"""Step 7: each Triton kernel checked, and timed beside other tilings and PyTorch's operators."""
