"""A load generator: requests sent by plan or by patient clients, and what became of each."""
