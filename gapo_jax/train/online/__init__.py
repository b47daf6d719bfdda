"""Rounds of the methods that learn from their own samples."""
