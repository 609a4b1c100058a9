"""The routed experts with frozen block-fp8 weights as grouped matrix products."""
