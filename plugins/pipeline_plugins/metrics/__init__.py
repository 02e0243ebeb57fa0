"""Pages of numbers for monitoring systems."""
