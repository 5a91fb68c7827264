"""Which models are served: entries of the configuration, and their accuracy profiles."""
