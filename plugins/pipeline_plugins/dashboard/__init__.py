"""Dashboards: what goes on, shown to a person."""
