"""Metrics that alter the image slightly and explain it again."""
