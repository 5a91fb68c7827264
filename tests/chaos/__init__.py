"""Tests that try to break the server: short ones in every run, long ones by ``make chaos``."""
