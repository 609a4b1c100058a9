"""Prompts to sample from: read, checked and split; each with the columns that its rewards need."""
