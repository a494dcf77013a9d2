"""The choice of a method and its parameters without OOD images."""
