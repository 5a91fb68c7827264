"""A load generator: sends requests in an open or closed loop, and reports latency and outcomes."""
