"""Environments: `make(name, ...)` returns a `VecEnv`.

Importing this package imports nothing heavy, torch included: worker processes import their slots from it.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtrl.types import EvaluationProtocol, VecEnv


def register_all() -> None:
    """Registers the environments of this package under the kind "env", and what belongs to them under other kinds.

    These are "evaluation" (how policies are evaluated) and, for Meta-World, "physics" (what simulates).
    """
    import mtrl.envs.atari.suite
    import mtrl.envs.metaworld.physics
    import mtrl.envs.metaworld.suite  # noqa: F401
    from mtrl.envs import counting, gym_suite, toy  # noqa: F401


def register_with_gymnasium() -> None:
    """Registers Meta-World's benchmarks and tasks under the ids that `gymnasium.make_vec` and `gymnasium.make` take."""
    import gymnasium

    from mtrl.envs.metaworld.catalog import MT50

    benchmarks = ("MT1", "MT10", "MT25", "MT50", "ML1", "ML10", "ML25", "ML45")
    ids = {f"mtrl/{name}-v0": {"name": name.lower()} for name in benchmarks}
    ids |= {f"mtrl/{task}": {"name": "mt1", "task": task} for task in MT50}
    for env_id, kwargs in ids.items():
        gymnasium.register(
            env_id,
            entry_point="mtrl.envs.gym_vector:make_single",
            vector_entry_point="mtrl.envs.gym_vector:make",
            max_episode_steps=500,
            kwargs=kwargs,
        )


def make(
    name: str,
    num_envs: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    slots_per_task: int = 1,
    history: int = 0,
    **options: Any,
) -> VecEnv:
    """Makes an environment.

    Args:
        name: Registered name: "mt10", "atari", "gym", "toy_reach", ...
        num_envs: Slots of all tasks together, a multiple of the tasks; by default `slots_per_task` times them.
        seed: Start of the random numbers (and, for Meta-World, of the 50 official goals).
        device: Where the tensors of a step lie.
        slots_per_task: See `num_envs`.
        history: Transitions of the past to put into each observation (`mtrl.envs.history`).
        options: What the environment's factory takes, for example `physics="official"`.

    Raises:
        UserError: Unknown name or option, or a value that does not fit.
    """
    from mtrl import registry
    from mtrl.envs.history import History
    from mtrl.types import UserError

    register_all()
    if not isinstance(history, int) or isinstance(history, bool) or history < 0:
        raise UserError(f"env: history must be a number of transitions, 0 or more, not {history!r}.")
    try:
        seed = index(seed)
    except TypeError:
        raise UserError(f"env: seed must be an integer, not {seed!r}: goals and episodes are drawn from it.") from None
    runtime = {"seed": seed, "device": device, "slots_per_task": slots_per_task}
    env: VecEnv = registry.build("env", {"name": name, "num_envs": num_envs, **options}, **runtime)
    return History(env, history) if history else env


def evaluation_protocol(settings: Mapping[str, Any], seed: int) -> EvaluationProtocol:
    """How policies are evaluated that were trained in an environment: as its suite says, if it says anything.

    Args:
        settings: `name` and options that `make` takes.
        seed: Of the run.
    """
    from mtrl import registry
    from mtrl.types import EvaluationProtocol

    register_all()
    name = settings["name"]
    settings = {key: value for key, value in settings.items() if key != "num_envs"}  # says nothing of the problem
    if name not in registry.names("evaluation"):
        return EvaluationProtocol(settings, seed)
    protocol: EvaluationProtocol = registry.build("evaluation", {"name": name}, settings=settings, seed=seed)
    return protocol
