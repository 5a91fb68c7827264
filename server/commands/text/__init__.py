"""``tome-serve text``: the vectors of labels, by the text tower of a model."""
