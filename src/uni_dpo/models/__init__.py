"""Models: found, loaded, worded for, asked."""
