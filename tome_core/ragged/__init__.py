"""Packed batches: the tokens of images of several lengths in one buffer, and the plan for it."""
