"""The parts of a network that methods need: its inputs, its layers, the layout of their outputs, its linear head."""
