"""`pipeline bench`: load on a gateway, sent when it is due, and how it was answered."""
