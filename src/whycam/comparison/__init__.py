"""Which explanation method to trust on a network; see `whycam.compare`."""
