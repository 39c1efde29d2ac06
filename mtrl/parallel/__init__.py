"""Processes beside this one, and what they share."""
