"""How a score changes with the image, given a map."""
