"""Log-probabilities and entropies of a linear head without the full logits."""
