"""Sockets and HTTP connections: listening, and uvicorn's protocol with limits."""
