"""What is explained: targets, how they are resolved and frozen, and class names."""
