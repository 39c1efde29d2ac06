"""Learning from teachers. Importing it registers what nodes can name: teachers, losses and schedules."""

from mtrl.distill import losses, scripted, teachers  # noqa: F401
