"""GPU work of a forward pass, counted without a GPU: kernel launches, bytes read and written."""
