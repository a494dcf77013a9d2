"""The layouts that images lie in: one module makes a data set of one layout of files."""
