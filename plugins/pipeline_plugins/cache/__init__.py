"""Stages of kind `cache`, and the stores that they keep answers in."""
