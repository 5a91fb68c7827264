"""Execution of batches: launch, batches in flight, and isolation of images that fail."""
