"""Forward and backward passes: capture a trace, run altered inputs, run a tail."""
