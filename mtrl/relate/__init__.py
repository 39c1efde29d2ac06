"""Which tasks belong together: relations between tasks, from policies and from runs, and groups of tasks."""
