"""Communication of the processes of a server: messages, channels, shared memory, board."""
