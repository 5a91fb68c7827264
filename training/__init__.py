"""The training recipe of the bundled model, from the raw data set to the served checkpoint."""
