"""The command line, and the commands that run without a server."""
