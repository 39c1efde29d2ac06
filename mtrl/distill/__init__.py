"""Learning from teachers. Importing it registers what nodes can name: teachers, losses, schedules, auxiliary losses."""

from mtrl.distill import kickstart, losses, schedules, scripted, teachers  # noqa: F401
