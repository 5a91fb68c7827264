"""Latency predictions: the cost model of a batch, and the queueing delay. Pure arithmetic."""
