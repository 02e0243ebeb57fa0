"""Experiments in production: what may be concluded from them, at any time that one looks."""
