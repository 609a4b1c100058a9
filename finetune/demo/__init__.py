"""`make demo`: train, measure, save and reload a nano DeepSeek-V3-architecture model on CPU, in minutes."""
