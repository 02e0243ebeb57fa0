"""Stages that observe calls and replies."""
