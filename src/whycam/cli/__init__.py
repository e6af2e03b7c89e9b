"""The command line: argv in, calls of the other rooms out."""
