"""What crosses between the API process and an engine process: messages, channel, shared memory, heartbeat."""
