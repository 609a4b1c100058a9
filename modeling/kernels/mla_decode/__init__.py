"""Absorbed multi-head latent attention over the latent cache."""
