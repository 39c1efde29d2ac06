"""Components for `mtrl`. Its entry point names this module; importing the others registers what is in them."""

from mtrl_example import learner, suite, transitions, trunk

__all__ = ["learner", "suite", "transitions", "trunk"]
