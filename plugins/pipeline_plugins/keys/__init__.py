"""`keys=sqlite` and `keys=redis`: virtual keys, which say who asks and what they may do."""
