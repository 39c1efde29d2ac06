"""Evaluation: results are stored per episode and reported with intervals."""
