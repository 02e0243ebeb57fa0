"""Plugins `ingest.NAME`: where documents are read, cut and embedded."""
