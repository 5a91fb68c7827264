"""Sockets and HTTP connections: listening, and the protocol with its limits."""
