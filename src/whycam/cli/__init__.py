"""The command line: it reads argv and calls the other rooms."""
