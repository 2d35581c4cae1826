"""Files that are whole or not there, and what they are known by."""
