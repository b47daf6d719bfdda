"""The measurements of gapo-jax benchmark, by kind."""
