"""Rendering of results: one module per result record, based on the output formats."""
