"""What a recipe or a model needs on a cluster: memory by part, speed, hours, energy, cost, traffic; no weights read."""
