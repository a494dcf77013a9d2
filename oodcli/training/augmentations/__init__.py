"""Augmentations beyond crops and colours: mixed images, holes, and random operations."""
