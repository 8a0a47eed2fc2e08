"""Scores and comparisons of saved predictions."""
