"""Communication of API process and engine process: messages, channel, shared memory, heartbeat."""
