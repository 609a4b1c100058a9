"""`make demo`: DeepSeek-R1's whole recipe on a nano model, on CPU, in minutes."""
