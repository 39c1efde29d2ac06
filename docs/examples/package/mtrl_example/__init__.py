"""Components for `mtrl`. Its entry point names this module; importing the other modules registers their components."""

from mtrl_example import learner, suite, transitions, trunk

__all__ = ["learner", "suite", "transitions", "trunk"]
