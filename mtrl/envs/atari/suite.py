"""`atari`: Atari games as the tasks of one policy, and common sets of games.

Sets, by their names in `games`:
    atari57: The games on which agents are usually compared.
    atari5: Five games that predict the median over the 57 (Aitchison et al., "Atari-5", 2023).
    atari6: Those of the public PopArt-IMPALA in PyTorch (aluscher/torchbeastpopart), which has single-task scores.
    atari_mt1 to atari_mt7: The multi-tasking instances of Sharma et al., "Learning to Multi-Task by Active Sampling"
        (2017), as listed in a public re-implementation. It has five of the six games of MT1, and so does this package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

from mtrl.checks import not_negative, positive
from mtrl.envs.atari.scores import REFERENCES, human_normalised_scores
from mtrl.registry import missing_extra, register, unknown
from mtrl.types import EvalResult, EvaluationProtocol, UserError, VecEnv

_ACTIVE_5 = (
    "space_invaders", "seaquest", "asterix", "alien", "assault", "bank_heist", "crazy_climber", "demon_attack",
    "gopher", "name_this_game", "star_gunner", "tutankham",
)  # fmt: skip

GAME_SETS: dict[str, tuple[str, ...]] = {
    "atari57": tuple(REFERENCES),
    "atari5": ("battle_zone", "double_dunk", "name_this_game", "phoenix", "qbert"),
    "atari6": ("air_raid", "carnival", "demon_attack", "name_this_game", "pong", "space_invaders"),
    "atari_mt1": ("space_invaders", "crazy_climber", "seaquest", "demon_attack", "star_gunner"),
    "atari_mt2": ("asterix", "alien", "assault", "time_pilot", "gopher", "chopper_command"),
    "atari_mt3": ("breakout", "centipede", "frostbite", "qbert", "kung_fu_master", "wizard_of_wor"),
    "atari_mt4": (
        "atlantis", "breakout", "bowling", "crazy_climber", "seaquest", "space_invaders", "pong", "enduro",
    ),
    "atari_mt5": _ACTIVE_5,
    "atari_mt6": (
        "atlantis", "amidar", "breakout", "bowling", "beam_rider", "chopper_command", "centipede", "frostbite",
        "kung_fu_master", "pong", "road_runner", "phoenix",
    ),
    "atari_mt7": (
        *_ACTIVE_5, "amidar", "chopper_command", "breakout", "beam_rider", "bowling", "centipede", "krull",
        "kangaroo", "phoenix",
    ),
}  # fmt: skip

MULTIPLAYER = ("combat", "joust", "maze_craze", "warlords")
"""ROMs without a single-player game."""


@register("env", "atari")
def atari(
    games: Sequence[str] | str,
    num_envs: int | None,
    seed: int,
    device: str,
    action_set: Literal["minimal", "full", "full_masked"] = "minimal",
    repeat_action_probability: float = 0.25,
    noop_max: int = 30,
    horizon: int = 27_000,
    zero_discount_on_life_loss: bool = True,
    num_workers: int | None = None,
    backend: Literal["ale", "envpool"] = "ale",
    render: bool = False,
    slots_per_task: int = 1,
) -> VecEnv:
    """Atari games, one task each. The arguments are those of `AtariVecEnv`.

    Use it for games, from pixels, of which one policy plays as many as you list.

    Args:
        games: A list of games, one game, or the name of a set: `[pong, breakout]`, `pong`, `atari57`.
        num_envs: Total number of slots; None for `slots_per_task` for each game.
        action_set: "minimal": the actions that any of the games responds to, with a mask for each game; "full": all 18
            in every game; "full_masked": all 18, masked to those that each game responds to.
        repeat_action_probability: Probability that a frame repeats the action of the previous one (sticky actions).
        noop_max: An episode begins with fewer no-ops than this.
        horizon: Steps after which an episode is truncated.
        zero_discount_on_life_loss: Whether the value after a lost life counts as zero.
        num_workers: Threads; None for one per core.
        backend: Emulator: "ale" or "envpool".
        render: Ignored: `AtariVecEnv.render` always works.

    Raises:
        UserError: A game does not exist, ale-py or a ROM is missing, or a value is invalid.
    """
    try:
        from mtrl.envs.atari.vector import AtariVecEnv
    except ImportError as error:
        raise missing_extra("Atari", "ale-py", "atari") from error
    if not 0 <= repeat_action_probability <= 1:
        raise ValueError(f"repeat_action_probability must be from 0 to 1, not {repeat_action_probability}.")
    positive(horizon=horizon)
    not_negative(noop_max=noop_max, **({} if num_workers is None else {"num_workers": num_workers}))
    try:
        return AtariVecEnv(
            named_games(games),
            num_envs,
            seed,
            device,
            action_set=action_set,
            repeat_action_probability=repeat_action_probability,
            noop_max=noop_max,
            horizon=horizon,
            zero_discount_on_life_loss=zero_discount_on_life_loss,
            num_workers=num_workers,
            backend=backend,
            slots_per_task=slots_per_task,
        )
    except OSError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"A ROM cannot be read (it comes with ale-py, or from $ALE_ROMS_DIR): {reason}") from error


def named_games(games: Sequence[str] | str) -> tuple[str, ...]:
    """The games named by `env.games`. Raises `UserError` if one does not exist or is named twice."""
    from ale_py.roms import get_all_rom_ids

    if isinstance(games, str):
        games = GAME_SETS.get(games, (games,))
    if not len(games):
        raise UserError("games must name at least one game: for example [pong, breakout], pong or atari57.")
    valid = sorted({*get_all_rom_ids(), *REFERENCES} - set(MULTIPLAYER))
    for game in games:
        if game not in valid:
            raise UserError(unknown("Atari game or set of games", str(game), [*GAME_SETS, *valid]))
    if len(set(games)) < len(games):
        raise UserError(f"Each game may be named once, found {', '.join(games)}.")
    return tuple(games)


@register("evaluation", "atari")
class AtariEvaluation(EvaluationProtocol):
    """Evaluation on ale-py, with human-normalised scores."""

    def record_settings(self) -> dict[str, Any]:
        return {**self.settings, "backend": "ale"}

    def words(self) -> dict[str, Any]:
        return {
            "emulator": f"ale-py {version('ale-py')}",
            "sticky actions": self.settings.get("repeat_action_probability", 0.25),
            "no-op starts": f"fewer than {self.settings.get('noop_max', 30)}",
            "action set": self.settings.get("action_set", "minimal"),
            "seeds": "seed i in episode i of a game",
            "return": "raw score",
        }

    def scores(self, result: EvalResult) -> dict[str, float]:
        return human_normalised_scores(
            {
                game: math.fsum(episode.episode_return for episode in episodes) / len(episodes)
                for game, episodes in result.by_task.items()
            }
        )
