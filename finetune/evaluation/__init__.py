"""What a model is worth on held-out conversations: losses, scores of its answers, and how sure the figures are."""
