"""Updates of the methods that learn from fixed examples."""
