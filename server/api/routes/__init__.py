"""The routes: each translates between HTTP and the pipeline."""
