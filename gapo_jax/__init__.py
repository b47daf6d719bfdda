"""GAPO and its companions: language models that obey constraints, on JAX and Flax."""

__version__ = "0.1.0"
