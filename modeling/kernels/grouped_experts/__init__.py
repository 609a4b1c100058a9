"""The routed experts as grouped matrix products."""
