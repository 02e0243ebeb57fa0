"""Where examples to evaluate are from."""
