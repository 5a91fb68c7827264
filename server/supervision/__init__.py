"""The parent process: it owns the listening sockets, and starts and watches all others."""
