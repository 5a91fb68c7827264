"""The catalog: which models are served, and their accuracy profiles."""
