"""The demo: a tiny model taught to reason on a CPU, from random weights to saved checkpoint."""
