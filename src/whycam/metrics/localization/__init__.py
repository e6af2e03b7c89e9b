"""Metrics that know where the evidence should lie."""
