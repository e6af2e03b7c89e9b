"""Metrics that alter pixels and read the network's answer."""
