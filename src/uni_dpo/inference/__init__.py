"""Ask a model about a file of rows: predict, score, compare."""
