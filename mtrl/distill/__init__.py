"""Learning from teachers. Importing it registers teachers, losses, schedules, data sources and the student."""

from mtrl.distill import distral_agent, kickstart, learner, losses, schedules, scripted, source, teachers  # noqa: F401
