"""Metrics for Prometheus, which the processes of a server write into memory that they share."""
