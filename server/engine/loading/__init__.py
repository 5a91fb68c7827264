"""Loading a model: checkpoint files, key names, weights, and the model of a catalog entry."""
