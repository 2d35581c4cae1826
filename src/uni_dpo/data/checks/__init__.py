"""Every fault that a row, a file or a dataset can have."""
