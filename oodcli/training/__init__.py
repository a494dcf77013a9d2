"""Training: published schedules, and the training loop."""
