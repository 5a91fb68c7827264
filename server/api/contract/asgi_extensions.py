"""What this server's connections tell the application, in an ASGI scope's ``extensions``."""

# The connection reads and discards the rest of a body itself, before it closes.
LINGERING_CLOSE = "tome.lingering_close"
