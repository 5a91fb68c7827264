"""The endpoints: each translates between HTTP and the pipeline."""
