"""Preference pairs and questions: read, checked, converted, registered."""
