"""Evaluation: kept per episode, and reported with intervals."""
