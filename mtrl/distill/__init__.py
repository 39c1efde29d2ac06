"""Learning from teachers. Importing it registers what nodes can name: teachers, losses, schedules, the student."""

from mtrl.distill import distral_agent, kickstart, learner, losses, schedules, scripted, source, teachers  # noqa: F401
