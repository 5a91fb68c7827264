"""What a forward pass asks of a GPU, counted without one: kernels launched, and bytes read and written."""
