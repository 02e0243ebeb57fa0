"""Splitters: what cuts a document into the pieces that are embedded and found."""
