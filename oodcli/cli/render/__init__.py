"""Records as text: one module per record of a result, on the formats below."""
