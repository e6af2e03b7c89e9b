"""Metrics of maps: how a score changes when the image is changed as the map says."""
