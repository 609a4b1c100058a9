"""The fine-tuning toolkit: data, losses, rewards and training stages."""
