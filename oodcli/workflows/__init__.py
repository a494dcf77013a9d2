"""One function per command: it takes typed arguments, returns a record and prints nothing."""
