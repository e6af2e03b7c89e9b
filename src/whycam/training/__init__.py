"""Data sets, read from whatever layout they are in."""
