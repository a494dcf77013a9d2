"""From files to pixels: decoded, resized, and read again at random."""
