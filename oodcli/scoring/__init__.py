"""Scoring of images: activations of a run, fitted methods, and their storage."""
