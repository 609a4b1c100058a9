"""What is put together for the Hub: the kernel repository."""
