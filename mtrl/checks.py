"""Checks of numeric arguments. The messages are for users and use the names of the settings."""

from __future__ import annotations


def positive(**values: float) -> None:
    """Raises `ValueError` for the first value that is not positive."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, not {value}.")


def not_negative(**values: float) -> None:
    """Raises `ValueError` for the first value that is negative or NaN."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, but is {value}.")
