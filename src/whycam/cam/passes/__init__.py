"""Forward and backward passes: capture a trace, run perturbed inputs, run the tail after a layer."""
