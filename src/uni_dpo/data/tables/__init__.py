"""Tables on disk: read and written row by row."""
