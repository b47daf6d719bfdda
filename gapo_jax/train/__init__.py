"""Training: states, steps, phases of a round, the loops, and what a run reports."""
