"""Stages that answer with a model."""
