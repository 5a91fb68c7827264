"""The pool of processes that decode sound, and what runs in them. No torch."""
