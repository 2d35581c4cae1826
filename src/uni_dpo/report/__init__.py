"""Figures that show a run."""
