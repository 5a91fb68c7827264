"""All GPU checks and measurements in one command of a few minutes: `benchmarks.gpu_day`."""
