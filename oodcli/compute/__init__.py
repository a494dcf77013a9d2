"""Where to compute: devices, precision, memory, and several processes together."""
