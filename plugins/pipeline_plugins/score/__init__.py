"""Scorers of answers."""
