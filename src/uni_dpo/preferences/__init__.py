"""Preference pairs on disk: reading, checking, and moving between the formats that people have."""
