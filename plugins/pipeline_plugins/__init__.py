"""First-party stages. They are registered as any other package's are, by entry point."""
