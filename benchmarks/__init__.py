"""Benchmarks: `make bench`, or `python -m benchmarks -k overhead`."""
