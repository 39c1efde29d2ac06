"""What the tests of physics `warp` run in processes of their own, since it needs another mujoco than the other tests.

    python -m tests.unit.envs.warp_checks one_step '{"tasks": ["reach-v3"], "goals": [0], "every": 20}'

prints the result as JSON. Also useful by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mtrl.envs
import mtrl.registry
import mtrl.types
from mtrl.envs.metaworld.pinned import with_pinned_mujoco

SEED = 5


def record(task: str, vectors: Any, length: int, every: int, noise: float) -> dict[str, Any]:
    """Steps of the official environment, driven by its scripted policy: before, action, and after.

    Runs where mujoco is the pinned one. Each array has a row for every n-th step of the episode of each goal.
    """
    import mujoco
    from metaworld.policies import ENV_POLICY_MAP

    from mtrl.envs.metaworld.official import make_env, official_task
    from mtrl.envs.metaworld.resets import STATE

    env, policy, rng = make_env(task), ENV_POLICY_MAP[task](), np.random.default_rng(0)
    rows: dict[str, list[Any]] = {}
    for goal, vector in enumerate(vectors):
        env.set_task(official_task(task, vector))
        obs, _ = env.reset()
        for step in range(length):
            # A copy, because some policies write into it.
            action = (policy.get_action(obs.copy()) + rng.normal(0, noise, 4)).clip(-1, 1).astype(np.float32)
            state = np.empty(mujoco.mj_stateSize(env.model, STATE))
            mujoco.mj_getState(env.model, env.data, state, STATE)
            before = obs
            obs, reward, _, _, info = env.step(action)
            if step % every == 0:
                row = {"goal": goal, "state": state, "before": before, "action": action, "obs": obs}
                row |= {"reward": reward, "success": info["success"], "contacts": len(env.data.contact)}
                for name, value in row.items():
                    rows.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in rows.items()}


def make(tasks: list[str], num_envs: int, **options: Any) -> Any:
    return mtrl.envs.make("metaworld", tasks=tasks, num_envs=num_envs, seed=SEED, physics="warp", **options)


def place(env: Any, scene: Any, task: int, goal: Any, state: Any, before: Any) -> None:
    """Sets the slots of a task, as many as there are rows, to official states."""
    from mtrl.envs.metaworld.warp_scenes import state_parts

    slots = (env.task == task).nonzero().flatten()[: len(state)]
    parts = np.concatenate(state_parts(scene.model, state), axis=1)
    env.goal[slots] = torch.from_numpy(goal).to(env.device)
    env.variables["physics"][slots, : parts.shape[1]] = torch.from_numpy(parts).float().to(env.device)
    env.variables["frame"][slots] = torch.from_numpy(before[:, :18]).float().to(env.device)


def one_step(
    tasks: list[str], goals: list[int], every: int, length: int = 150, noise: float = 0.1, device: str = "cpu"
) -> dict[str, Any]:
    """Differences after one step from states of the scripted policies' episodes, for each task.

    Of the hand and of the first object, in metres: all of them, sorted.
    """
    from mtrl.envs.metaworld.goals import Benchmark, official_goals

    vectors = official_goals(Benchmark("", tuple(tasks)), SEED)
    recorded = [
        with_pinned_mujoco(record, task, own[goals], length, every, noise)
        for task, own in zip(tasks, vectors, strict=True)
    ]
    rows = len(recorded[0]["goal"])
    env = make(tasks, rows * len(tasks), device=device)
    env.reset()
    for worlds in env.control_step.worlds:
        for task in worlds.scene.tasks:
            r = recorded[task]
            place(env, worlds.scene, task, np.array(goals)[r["goal"]], r["state"], r["before"])
    action = torch.from_numpy(np.concatenate([r["action"] for r in recorded]))
    step = env.step(action.to(device))
    found = step.final_obs.cpu().double().numpy().reshape(len(tasks), rows, -1)
    reward, success = (values.cpu().numpy().reshape(len(tasks), rows) for values in (step.reward, step.success))
    result: dict[str, Any] = {}
    for k, (task, r) in enumerate(zip(tasks, recorded, strict=True)):
        difference = np.abs(found[k] - r["obs"])
        result[task] = {
            "hand": np.sort(np.linalg.norm(difference[:, :3], axis=1)).tolist(),
            "object": np.sort(np.linalg.norm(difference[:, 4:7], axis=1)).tolist(),
            "obs": np.sort(difference.max(1)).tolist(),
            "reward": np.sort(np.abs(reward[k] - r["reward"])).tolist(),
            "success": int((success[k] != (r["success"] > 0)).sum()),
            "contacts": int(r["contacts"].max()),
            "overflow": int(env.control_step.overflow[k]),
        }
    return result


def first_frames(tasks: list[str], goals: list[int]) -> dict[str, Any]:
    """Largest difference of the first observation, as it is and as Warp's poses give it, from the official one."""
    env = make(tasks, len(tasks) * len(goals))
    goal = torch.tensor(goals).repeat(len(tasks))
    env.assign(env.task, goal)
    found = env.reset()
    for worlds in env.control_step.worlds:
        state, task = env.variables["physics"][worlds.slots], env.task[worlds.slots]
        first = torch.tensor([worlds.scene.tasks.index(k) * 50 for k in task.tolist()])
        mocap_pos = state[:, worlds.first.shape[1] - 3 : worlds.first.shape[1]]
        worlds.write(state, first + goal[worlds.slots], mocap_pos, torch.zeros(len(task)))
        worlds.forward()
    inputs = env.inputs(torch.zeros(env.num_envs, 4))
    frame = env.control_step.evaluate(inputs, inputs.physics).frame
    official = mtrl.envs.make("metaworld", tasks=tasks, num_envs=env.num_envs, seed=SEED, physics="official")
    official.assign(official.task, goal)
    expected = official.reset()
    official.close()
    return {"obs": float((found - expected).abs().max()), "frame": float((frame - expected[:, :18]).abs().max())}


def packages() -> Any:
    from mtrl.envs.metaworld.warp_packages import load

    return load()


def contract() -> dict[str, Any]:
    """What slots do at the end of episodes, when tasks are assigned, after loading a state, and when they break."""
    tasks, result = ["reach-v3", "push-v3", "drawer-close-v3"], {}
    env, generator = make(tasks, 6, horizon=3), torch.Generator().manual_seed(0)
    actions = torch.rand(8, 6, 4, generator=generator) * 2 - 1
    env.reset()
    env.assign(torch.tensor([1, 1, 0, 1, 2, 2]), torch.tensor([7, 8, 9, 10, 11, 12]))
    steps = [env.step(actions[t]) for t in range(3)]
    official = mtrl.envs.make("metaworld", tasks=tasks, num_envs=6, seed=SEED, physics="official")
    official.assign(torch.tensor([1, 1, 0, 1, 2, 2]), torch.tensor([7, 8, 9, 10, 11, 12]))
    result["truncated"] = [step.truncated.tolist() for step in steps]
    result["tasks"] = [steps[2].task.tolist(), env.task.tolist()]
    result["next episode"] = float((steps[2].obs - official.reset()).abs().max())
    official.close()
    env.step(actions[3])
    state = env.state_dict()
    after = [env.step(actions[t]) for t in range(4, 8)]
    other = make(tasks, 6, horizon=3)
    other.load_state_dict(state)
    again = [other.step(actions[t]) for t in range(4, 8)]
    pairs = [(vars(one), vars(two)) for one, two in zip(after, again, strict=True)]
    result["same"] = all(torch.equal(one[f], two[f]) for one, two in pairs for f in one if one[f] is not None)
    try:
        env.assign(torch.tensor([2, 0, 1, 1, 2, 2]))
    except mtrl.types.UserError as error:
        result["error"] = str(error)
    env.variables["physics"][1, 3] = torch.nan
    step = env.step(actions[0])
    result["finite"] = bool(step.final_obs.isfinite().all() and step.reward.isfinite().all())
    result["unstable"] = env.control_step.unstable.tolist()
    return result


def memory() -> dict[str, Any]:
    """What is counted where contacts do not fit: the peg, which falls at first, has four with the table."""
    packages()
    from mtrl.envs.metaworld.warp_physics import Settings, WarpVecEnv

    def with_little(suite: Any, num_envs: int, seed: int, device: str) -> Any:
        return WarpVecEnv(packages(), suite, num_envs, seed, device, Settings(contacts=1))

    mtrl.registry.register("physics", "with_little")(with_little)
    env = mtrl.envs.make("mt1", task="peg-insert-side-v3", num_envs=2, seed=SEED, physics="with_little")
    env.reset()
    for _ in range(8):
        env.step(torch.zeros(2, 4))
    return {"overflow": env.control_step.overflow.tolist()}


def tensors() -> dict[str, Any]:
    """What `gymnasium.make_vec` gives, as tensors, beside the `VecEnv` in it."""
    import gymnasium

    packages()
    vector = gymnasium.make_vec("mtrl/reach-v3", num_envs=2, seed=SEED, physics="warp", tensors=True)
    env, other = vector.unwrapped, make(["reach-v3"], 2)
    first, expected = env.reset()[0], other.reset()
    obs, reward, *_, infos = env.step(torch.full((2, 4), 0.5))
    step = other.step(torch.full((2, 4), 0.5))
    pairs = ((first, expected), (obs, step.obs), (reward, step.reward), (infos["success"], step.success))
    return {"same": [torch.equal(one, two) for one, two in pairs]}


def train_and_resume() -> dict[str, Any]:
    """A run, and the same run stopped and resumed, in the working directory."""
    from tests.system.commands import assert_same_run, run, stopped_after, tiny

    given = ["env.task=reach-v3", "env.physics=warp", "env.horizon=8", "eval.every=24", "eval.episodes_per_task=1"]
    command = [*tiny("ppo", "mt1", num_envs=2, total_steps=24), *given, "data.rollout_length=4", "log.every=8"]
    codes = [run(*command, "run_dir=whole")]
    with stopped_after(2):
        codes.append(run(*command, "run_dir=parts"))
    codes.append(run("resume=parts"))
    assert_same_run(Path("whole"), Path("parts"))
    evaluated = json.loads(max(Path("whole/eval").glob("*.json")).read_text())
    return {"codes": codes, "protocol": evaluated["protocol"]["physics"]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    from tests.unit.envs import warp_checks  # by this name, other processes find it

    print(json.dumps(getattr(warp_checks, sys.argv[1])(**json.loads(sys.argv[2]))))
