"""Plugins `store.NAME`: where collections of documents are kept and searched."""
