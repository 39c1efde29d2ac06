"""Atari: the games and their sets, the pools that run them, and the scores that results are measured by."""
