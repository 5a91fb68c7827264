"""The pool of processes that decode sound and video, and what runs in them. No torch."""
