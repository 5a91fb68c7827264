"""``tome-serve tune``: what merging changes and gains, measured on pictures without labels."""
