"""Stages that check requests and replies: `validate=NAME`."""
