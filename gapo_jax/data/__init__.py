"""Read, mine, check and encode data: tasks, preferential pairs, tokenizers (numpy only)."""
