"""The engine: a process that owns the models of one device. `client` is its side in the API process."""
