"""Robustness metrics: alter the image and explain it again."""
