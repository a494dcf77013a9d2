"""From a run and images to scores: activations, fitted methods, and the stores for both."""
