.PHONY: help check test slow docs ci

help: ## This list
	@grep -E '^[a-z]+:.*## ' Makefile | sed 's/:.*## /\t/'

check: ## Linters, type check and import rule, in the active environment
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-logo

test: ## The tests of the README
	pytest -n 2

slow: ## Learning tests and others of minutes
	pytest -n 2 -m slow

docs: ## docs/_build/html (needs the docs extra)
	python -m sphinx -W --keep-going -b html docs docs/_build/html

ci: ## Everything from a fresh virtual environment
	.ci/run
