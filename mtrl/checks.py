"""Checks of numbers that callers give. The messages are for users: they name the number as its setting is called."""

from __future__ import annotations


def positive(**values: float) -> None:
    """Raises `ValueError` for the first value that is not above zero."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, not {value}.")


def not_negative(**values: float) -> None:
    """Raises `ValueError` for the first value below zero (or NaN)."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, but is {value}.")
