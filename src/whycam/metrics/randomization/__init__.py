"""Randomization metrics: reinitialize the network's parameters and explain again."""
