"""Sphinx configuration."""

project = "mtrl"
author = "mtrl contributors"
copyright = "mtrl contributors"
extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "examples"]
html_theme = "furo"
html_title = "mtrl"
