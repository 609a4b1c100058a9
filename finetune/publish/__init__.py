"""What goes to the Hub: models and adapters, checked and described, and the kernel repository."""
