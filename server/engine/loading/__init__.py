"""From a catalog entry to a model: checkpoint files, key names, weights."""
