"""A study: a grid of configurations and seeds, its runs, its lines, its tables and plots."""
