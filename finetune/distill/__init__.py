"""Distillation of any causal language model into any smaller one: on the student's own samples, and from a cache."""
