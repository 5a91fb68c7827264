"""The engine: a process that owns the models of one device.

`server.engine_client` is its counterpart in the API process.
"""
