"""What models' work costs, and accounts of what was spent."""
