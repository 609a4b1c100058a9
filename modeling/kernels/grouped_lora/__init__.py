"""The routed experts with low-rank terms beside frozen weights, which are never added up."""
