"""Stages of Acme."""
