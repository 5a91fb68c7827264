"""The bundled model: its recipe, from the raw files to the checkpoint that is served."""
