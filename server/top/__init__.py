"""A live view of a server, from what it tells Prometheus."""
