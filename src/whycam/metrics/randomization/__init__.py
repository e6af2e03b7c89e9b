"""Metrics that destroy the network's parameters."""
