"""Out-of-distribution detection for image classifiers."""

__version__ = "0.1.0"
