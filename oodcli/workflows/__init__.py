"""One function per command: typed arguments in, a record out; nothing here prints."""
