"""Traces: what became of a call, as spans for a tracing backend."""
