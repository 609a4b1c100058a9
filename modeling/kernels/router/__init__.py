"""Group-limited top-k choice of experts."""
