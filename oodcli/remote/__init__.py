"""Remote files: their addresses, reading in ranges, and a bounded local cache of what was read."""
