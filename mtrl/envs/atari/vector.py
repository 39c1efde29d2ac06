"""`AtariVecEnv`: Atari games on ale-py's vector environment or EnvPool. The pools of all games run concurrently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.envs.atari.rows import BACKENDS, Frames, Lives, Rows
from mtrl.envs.base import Assignments, check_action, check_num_envs, check_truncate
from mtrl.system.cores import available_cores
from mtrl.types import EnvSpec, State, Step

FRAME_SKIP, STACK, SIZE = 4, 4, 84
NUM_ACTIONS = 18
"""Combinations of joystick and button. A game responds to a subset of them, its minimal action set."""
NUM_SEEDS = 2**31 - 1
"""Goals are the seeds of episodes."""

Slots = NDArray[np.int64]
"""Numbers of slots."""


class Pool:
    """Rows of one game. A row is lent to a slot or idle; idle rows are stepped, too, but their results are unused.

    Args:
        env: The rows.
        num_envs: Number of rows.
    """

    def __init__(self, env: Rows, num_envs: int) -> None:
        self.env = env
        self.slot = np.full(num_envs, -1)
        """Slot that each row is lent to, or -1."""

    def lend(self, slots: Slots) -> Slots:
        """Lends the idle rows; returns the slots that got none."""
        rows = np.flatnonzero(self.slot < 0)[: len(slots)]
        self.slot[rows] = slots[: len(rows)]
        return slots[len(rows) :]

    def release(self, slots: Slots) -> None:
        self.slot[self.rows(slots)] = -1

    def rows(self, slots: Slots) -> NDArray[np.bool_]:
        """Mask of the rows that are lent to any of the slots."""
        return np.isin(self.slot, slots)


@dataclass
class _Outcome:
    """The results of the actions, by slot. Where an episode ended, the next one has begun."""

    obs: Frames
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    lives: NDArray[np.int64]
    final_obs: list[tuple[Slots, Frames]]
    """Slots whose episodes ended, and their last observations."""


class AtariVecEnv:
    """A `VecEnv` over games. Observations are uint8 (4, 84, 84), the oldest frame first; rewards are raw.

    Preprocessing is that of `gymnasium.wrappers.AtariPreprocessing` (frame skip 4, maximum of the last two frames,
    gray, 84x84) and `FrameStackObservation`, as implemented by ale-py. It differs in two points:
        1. The frames before an episode's first are black, not copies of it (`padding_type="zero"`).
        2. An episode begins after 0 to `noop_max - 1` no-ops, not 1 to `noop_max`, and they do not count towards its
           time limit.

    Seeds. ale-py can seed an episode only by loading the game again, which takes as long as a few hundred steps.
    Therefore an episode is seeded (its goal is its seed, and the same actions lead to the same frames) only if it was
    begun by `reset`, if its goal was assigned, if the previous one was truncated by the caller, or if its slot changes
    the game. Other episodes continue with the random numbers of the previous one, and their goal is -1. Trajectories
    depend only on the seed and the actions, not on the number of workers.

    Slots that change their game. A game's pool has as many rows as slots begin with it. If more slots need the game,
    another pool is made for them and kept. The row of a slot is idle while the slot runs another game. A pool is
    stepped as a whole, including idle rows, unless all of them are idle. So any assignment is possible, but
    assignments far from the first one waste steps.

    `state_dict`. The state of ale-py's vector environment cannot be saved. The first step after `load_state_dict`
    ignores the actions: it truncates every running episode at its saved observation, with reward 0, and begins the
    next one, seeded. Tasks, goals and the generator that draws them are restored.

    Args:
        games: Names of ROMs: the tasks.
        num_envs: B; None for `slots_per_task` for each game.
        seed: Seed of the generator that draws the episodes' seeds.
        device: Device of the tensors in a step.
        action_set: "minimal": the actions that any of the games responds to, with a mask for each game; "full": all 18
            in every game; "full_masked": all 18, masked to those that each game responds to.
        repeat_action_probability: Probability that a frame repeats the action of the previous one (sticky actions).
        noop_max: See above.
        horizon: Steps after which an episode is truncated.
        zero_discount_on_life_loss: Whether `Step.life_lost` is reported. The episode continues in any case.
        num_workers: Threads; None for one per core, 0 for as few as possible. Every pool has at least one.
        backend: Emulator. With "envpool" no episode is seeded, all goals are -1, the frames before an episode's first
            are copies of it, and it begins after 1 to `noop_max` no-ops.

    Raises:
        UserError: `num_envs` is not a multiple of the number of games.
        OSError: A ROM cannot be read.
    """

    def __init__(
        self,
        games: Sequence[str],
        num_envs: int | None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        action_set: Literal["minimal", "full", "full_masked"] = "minimal",
        repeat_action_probability: float = 0.25,
        noop_max: int = 30,
        horizon: int = 27_000,
        zero_discount_on_life_loss: bool = True,
        num_workers: int | None = None,
        backend: Literal["ale", "envpool"] = "ale",
        slots_per_task: int = 1,
    ) -> None:
        self._games = tuple(games)
        self.num_envs = check_num_envs(num_envs, len(games), slots_per_task)
        self._device = torch.device(device)
        self._num_workers = max(1, available_cores() if num_workers is None else num_workers)
        self._options = {
            "num_threads": -(-self._num_workers // len(games)),  # rounded up
            "full_action_space": action_set == "full",
            "repeat_action_probability": repeat_action_probability,
            "noop_max": noop_max,
            "max_num_frames_per_episode": FRAME_SKIP * horizon,
            "frameskip": FRAME_SKIP,
            "stack_num": STACK,
            "img_height": SIZE,
            "img_width": SIZE,
            "reward_clipping": False,
            "use_fire_reset": False,  # AtariPreprocessing does not press fire
        }
        self._rows = BACKENDS[backend]
        self._pools = [[self._pool(game, self.num_envs // len(games))] for game in games]
        actions = [pools[0].env.actions for pools in self._pools]
        all_actions = range(NUM_ACTIONS) if action_set == "full_masked" else sorted(set().union(*actions))
        # Index of each action in each game's pool; 0 for actions that the game does not have.
        self._index = np.array([[known.index(a) if a in known else 0 for a in all_actions] for known in actions])
        self.spec = EnvSpec(
            task_names=self._games,
            obs_shape=(STACK, SIZE, SIZE),
            obs_dtype=torch.uint8,
            action_kind="discrete",
            action_dim=len(all_actions),
            action_mask=tuple(tuple(action in known for action in all_actions) for known in actions),
            horizon=horizon,
            reports_success=(False,) * len(games),
            comparable_returns=len(games) == 1,
        )
        self._report_lives = zero_discount_on_life_loss
        self._assignments = Assignments(self.num_envs, len(games), NUM_SEEDS, seed, torch.device("cpu"))
        self._task, self._goal = self._assignments.task.numpy().copy(), self._assignments.goal.numpy().copy()
        self.task, self.goal = self._tensor(self._task.copy()), self._tensor(self._goal.copy())
        self._lives = np.zeros(self.num_envs, np.int64)
        self._obs: Frames | None = None
        self._loaded = False
        """Whether the slots show saved episodes, which the emulators do not run."""

    def reset(self, seed: int | None = None) -> Tensor:
        self._check_open()
        if seed is not None:
            self._assignments.reseed(seed)
        self._obs = np.empty((self.num_envs, *self.spec.obs_shape), np.uint8)
        self._begin(np.ones(self.num_envs, dtype=bool), self._obs)
        self._loaded = False
        return self._tensor(self._obs)

    def step(self, action: Tensor, truncate: Tensor | None = None) -> Step:
        self._check_open()
        if self._obs is None:
            raise RuntimeError("Call reset before the first step.")
        task = self.task
        index = self._index[self._task, check_action(action, self.spec, task).numpy()]
        truncate_now = check_truncate(truncate, self.num_envs).cpu().numpy()
        if self._loaded:
            outcome, truncate_now, self._loaded = self._unplayed(), np.ones_like(truncate_now), False
        else:
            outcome = self._play(index)
        obs, ended = outcome.obs, outcome.terminated | outcome.truncated
        truncated = outcome.truncated | (truncate_now & ~outcome.terminated)
        done = ended | truncated
        life_lost = (outcome.lives > 0) & (outcome.lives < self._lives) & ~done
        self._obs, self._lives, final_obs = obs, outcome.lives, obs
        if done.any():
            final_obs = obs.copy()
            for slots, last in outcome.final_obs:
                final_obs[slots] = last
            self._goal[done] = -1
            moved, seeded = self._assignments.task.numpy() != self._task, self._assignments.assigned.numpy() >= 0
            self._begin(done & (~ended | moved | seeded), obs)  # other slots have been reset by their pool
        return Step(
            obs=self._tensor(obs),
            reward=self._tensor(outcome.reward),
            terminated=self._tensor(outcome.terminated),
            truncated=self._tensor(truncated),
            success=torch.zeros(self.num_envs, dtype=torch.bool, device=self._device),
            task=task,
            final_obs=self._tensor(final_obs),
            life_lost=self._tensor(life_lost) if self._report_lives else None,
        )

    def _play(self, index: NDArray[np.int64]) -> _Outcome:
        """Takes the actions, given as indices of each game, in all pools at once."""
        B = self.num_envs
        outcome = _Outcome(
            obs=np.empty((B, *self.spec.obs_shape), np.uint8),
            reward=np.empty(B, np.float32),
            terminated=np.empty(B, bool),
            truncated=np.empty(B, bool),
            lives=np.empty(B, np.int64),
            final_obs=[],
        )
        busy = [pool for pool in self._all_pools() if (pool.slot >= 0).any()]
        try:
            for pool in busy:
                pool.env.send(np.where(pool.slot >= 0, index[pool.slot], 0))
            for pool in busy:
                played, lent = pool.env.recv(), pool.slot >= 0
                rows = slice(None) if lent.all() else lent  # the slice copies nothing
                slots = pool.slot[rows]
                outcome.obs[slots], outcome.reward[slots] = played.obs[rows], played.reward[rows]
                outcome.terminated[slots], outcome.truncated[slots] = played.terminated[rows], played.truncated[rows]
                outcome.lives[slots] = played.lives[rows]
                ended = lent & (played.terminated | played.truncated)
                if ended.any():
                    outcome.final_obs.append((pool.slot[ended], played.final_obs[ended]))
        except BaseException:  # also an interrupt: results left in a pool would be taken for those of the next action
            self.close()
            raise
        return outcome

    def _unplayed(self) -> _Outcome:
        """The outcome of no step in any slot."""
        assert self._obs is not None
        nowhere = np.zeros(self.num_envs, dtype=bool)
        return _Outcome(self._obs, np.zeros(self.num_envs, np.float32), nowhere, nowhere, self._lives, [])

    def _begin(self, begins: NDArray[np.bool_], obs: Frames) -> None:
        """Begins the assigned episodes, seeded, in some slots and writes their first observations to `obs`."""
        slots = np.flatnonzero(begins)
        self._task[slots] = self._assignments.task.numpy()[slots]
        self._goal[slots] = self._assignments.goal.numpy()[slots]
        self._assignments.advance(torch.from_numpy(begins))
        for pool in self._all_pools():
            pool.release(slots)
        for task in np.unique(self._task[slots]):
            waiting = slots[self._task[slots] == task]
            for pool in self._pools[task]:
                waiting = pool.lend(waiting)
            if len(waiting):
                self._pools[task].append(self._pool(self._games[task], len(waiting)))
                self._pools[task][-1].lend(waiting)
        touched = [pool for pool in self._all_pools() if pool.rows(slots).any()]

        def reset(pool: Pool) -> tuple[Frames, Lives]:
            rows = pool.rows(slots)
            return pool.env.reset(self._goal[pool.slot[rows]], rows)

        with ThreadPoolExecutor(self._num_workers) as executor:  # loading games is slow
            for pool, (first, lives) in zip(touched, executor.map(reset, touched), strict=True):
                rows = pool.rows(slots)
                obs[pool.slot[rows]], self._lives[pool.slot[rows]] = first[rows], lives[rows]
        if not self._rows.seeds_episodes:
            self._goal[slots] = -1
        self.task, self.goal = self._tensor(self._task.copy()), self._tensor(self._goal.copy())

    def assign(self, task: Tensor, goal: Tensor | None = None) -> None:
        if goal is not None and (goal >= 0).any() and not self._rows.seeds_episodes:
            raise ValueError("EnvPool cannot seed an episode, which is what a goal is here: use backend=ale.")
        self._assignments.assign(task, goal)

    def render(self, slot: int = 0) -> Frames:
        """The newest frame of a slot as the policy sees it, as an RGB image enlarged four times."""
        self._check_open()
        if self._obs is None:
            raise RuntimeError("Call reset before the first image.")
        return self._obs[slot, -1].repeat(4, 0).repeat(4, 1)[..., None].repeat(3, 2)

    def state_dict(self) -> State:
        return {
            "task": torch.tensor(self._task),
            "goal": torch.tensor(self._goal),
            "obs": torch.empty(0, dtype=torch.uint8) if self._obs is None else torch.tensor(self._obs),
            "assignments": self._assignments.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restores the saved observations; the next step truncates these episodes (see the class).

        Raises:
            ValueError: The state has a different number of slots.
        """
        self._assignments.check_running(state)
        self._assignments.load_state_dict(state["assignments"])
        self._task, self._goal = (state[key].cpu().numpy().copy() for key in ("task", "goal"))
        self.task, self.goal = self._tensor(self._task.copy()), self._tensor(self._goal.copy())
        self._loaded = bool(len(state["obs"]))
        self._obs = state["obs"].cpu().numpy().copy() if self._loaded else None

    def close(self) -> None:
        self._pools.clear()

    def _check_open(self) -> None:
        if not self._pools:
            raise RuntimeError("The environment is closed.")

    def _pool(self, game: str, rows: int) -> Pool:
        return Pool(self._rows(game, rows, **self._options), rows)

    def _all_pools(self) -> Iterator[Pool]:
        return (pool for pools in self._pools for pool in pools)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self._device)
