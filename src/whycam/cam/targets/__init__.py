"""Targets, which are the scores to explain: the usual ones, how they are resolved and frozen, and class names."""
