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
    """Registers the environments of this package under the kind "env".

    Their evaluation protocols are registered under "evaluation", and the simulations of Meta-World under "physics".
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
        num_envs: Total number of slots, a multiple of the number of tasks; by default `slots_per_task` for each task.
        seed: Seed of the random numbers and, for Meta-World, of the 50 official goals.
        device: Device of the tensors in a step.
        slots_per_task: See `num_envs`.
        history: Number of past transitions in each observation (`mtrl.envs.history`).
        options: Options of the environment's factory, for example `physics="official"`.

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
    """The evaluation protocol of an environment: the one registered under its name, or else the default.

    Args:
        settings: `name` and options of `make`.
        seed: Seed of the run.
    """
    from mtrl import registry
    from mtrl.types import EvaluationProtocol

    register_all()
    name = settings["name"]
    settings = {key: value for key, value in settings.items() if key != "num_envs"}  # not part of the problem
    if name not in registry.names("evaluation"):
        return EvaluationProtocol(settings, seed)
    protocol: EvaluationProtocol = registry.build("evaluation", {"name": name}, settings=settings, seed=seed)
    return protocol
