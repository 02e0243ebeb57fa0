"""Stages that pick the target of a call."""
