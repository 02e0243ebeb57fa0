"""Ledgers: what became of each call, on record."""
