"""What is looked at: inputs, layers, the layout of channels and positions, the linear head."""
