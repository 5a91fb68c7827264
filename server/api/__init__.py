"""The API process: speaks HTTP, admits, decodes and answers. Imports no torch; the engine process has the models."""
