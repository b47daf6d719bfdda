"""Compile for a TPU or GPU that is not here: does it fit, what does it move."""
