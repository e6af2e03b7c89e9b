"""One function per command: call the rooms, say what came of it and where it lies."""
