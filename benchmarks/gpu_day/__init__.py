"""All that a GPU has to be asked, in one command of a few minutes: ``python -m benchmarks.gpu_day``."""
