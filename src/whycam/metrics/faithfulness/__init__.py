"""Faithfulness metrics: alter the image's pixels and read the network's output."""
