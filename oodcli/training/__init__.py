"""Training: published schedules and the loop that follows them."""
