"""A live view of a server, from its Prometheus metrics."""
