"""Generated pictures of every kind, with what a viewer shows of each, to compare programs with."""
