"""Data: our task prompts, preferential pairs, sources, tokenisers and batching (numpy only)."""
