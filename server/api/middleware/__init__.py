"""ASGI middleware, one task a module."""
