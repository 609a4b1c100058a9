"""Fine-tuning on top of `seeklet.modeling`: the demo of `make demo`."""
