"""Cross-entropy of a linear head without the full logits."""
