"""Tests that try to break the server: short ones for every run, long ones by ``make chaos``; see `tests.chaos.__main__`."""
