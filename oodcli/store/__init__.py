"""Storage on disk: runs, scores, searches and activations, and safe reading and writing."""
