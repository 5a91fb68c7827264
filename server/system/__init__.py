"""What the operating system gives: limits of the process, Unix sockets."""
