"""From a run and images to scores: activations, fitted methods, and what is stored of both."""
