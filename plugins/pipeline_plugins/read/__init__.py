"""Readers: what makes documents of a file, by its suffix."""
