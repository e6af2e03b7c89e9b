"""One function per command. It calls the other rooms and prints the result and where the files are."""
