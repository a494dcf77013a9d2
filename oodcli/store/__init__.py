"""What is stored on disk: runs, scores, searches, activations, and the rules for writing them."""
