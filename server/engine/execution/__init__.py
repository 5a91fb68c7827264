"""Runs batches: launch, results in flight, isolation of images that fail."""
