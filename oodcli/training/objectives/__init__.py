"""Training objectives (loss functions): one module per objective."""
