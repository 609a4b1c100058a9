"""Rejection sampling: many attempts at each prompt, the right and well-made ones kept as a dataset for fine-tuning."""
