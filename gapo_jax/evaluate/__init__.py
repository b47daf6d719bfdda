"""Evaluation by rules: constraint accuracy with intervals, IFEval files, the run report."""
