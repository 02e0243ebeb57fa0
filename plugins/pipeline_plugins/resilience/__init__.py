"""Keeping answers coming while targets fail: timeouts, retries, breakers, limits."""
