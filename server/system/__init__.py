"""The process and its surroundings: limit on files, Unix sockets, times of a stop."""
