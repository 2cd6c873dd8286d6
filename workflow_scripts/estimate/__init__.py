"""What the stale jobs will cost and need, before anything runs."""
