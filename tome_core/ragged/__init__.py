"""Batches of images with different numbers of tokens in one buffer: its plan, its layout, its padding."""
