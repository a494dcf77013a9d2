"""The file layouts of data sets, one module per layout."""
