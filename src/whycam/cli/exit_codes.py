"""The exit statuses of the command line. A module of its own, because `main` and the commands both need them."""

EXIT_OK = 0
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
