"""Distral in two rooms and a corridor: its variants and separate learners, over 20 seeds, and the paper's orderings.

    python benchmarks/distral_two_rooms.py          # some minutes on one core; writes results/distral_two_rooms.json
    python benchmarks/distral_two_rooms.py --show   # prints what is stored there

Every variant has its own best beta and learning rate, by the area under the learning curve of seeds that are not used
again. All variants see the same goals in the same seed, so that differences are taken within seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtrl.distill.two_rooms import MOVES, Settings, TabularDistral, TwoRooms, train
from mtrl.files import json_text
from mtrl.run.evaluation.statistics import bootstrap_interval

RESULT = Path(__file__).parents[1] / "results" / "distral_two_rooms.json"

NUM_TASKS, EPISODES, WINDOW = 8, 300, 10
BETAS, RATES = (5.0, 20.0, 50.0, 200.0), (0.2, 0.5, 1.0)
TUNING_SEEDS, SEEDS = range(1000, 1003), range(20)

VARIANTS: dict[str, tuple[float, bool]] = {
    "separate": (0.0, False),
    "KL, one column": (1.0, False),
    "KL, two columns": (1.0, True),
    "KL and entropy, one column": (0.5, False),
    "KL and entropy, two columns": (0.5, True),
}
"""alpha, and whether there are two columns."""

MEASURES = ("auc", "early", "final")
"""Mean return over all episodes of training; over the first fifth; over the last tenth."""

ORDERINGS: tuple[tuple[str, str, str], ...] = (
    ("auc", "KL, two columns", "KL, one column"),
    ("auc", "KL and entropy, two columns", "KL and entropy, one column"),
    ("auc", "KL, one column", "separate"),
    ("auc", "KL and entropy, one column", "separate"),
    ("auc", "KL, two columns", "separate"),
    ("auc", "KL and entropy, two columns", "separate"),
    ("early", "KL, one column", "KL and entropy, one column"),
    ("early", "KL, two columns", "KL and entropy, two columns"),
    ("final", "KL and entropy, one column", "KL, one column"),
    ("final", "KL and entropy, two columns", "KL, two columns"),
)
"""What the paper reports for its mazes: measure, the better variant, the worse."""


def measures(returns: np.ndarray) -> dict[str, np.ndarray]:
    """Of the returns of all episodes (E, S): each measure (S,)."""
    E = len(returns)
    return {"auc": returns.mean(0), "early": returns[: E // 5].mean(0), "final": returns[-(E // 10) :].mean(0)}


def goals_of(rooms: TwoRooms, seed: int) -> torch.Tensor:
    return rooms.draw_goals(NUM_TASKS, torch.Generator().manual_seed(seed))


def run_all(rooms: TwoRooms, settings: list[Settings], seeds: range, seed: int) -> tuple[np.ndarray, TabularDistral]:
    """Returns (E, settings, seeds)."""
    runs = [s for s in settings for _ in seeds]
    goals = torch.stack([goals_of(rooms, own) for own in seeds]).repeat(len(settings), 1)
    returns, learner = train(runs, goals, rooms, EPISODES, seed)
    return returns.numpy().reshape(EPISODES, len(settings), len(seeds)), learner


def goes_on(rooms: TwoRooms, learner: TabularDistral) -> list[float]:
    """How probable the shared policy of each run finds it, in the middle of the corridor, to go on as it came."""
    cells = (rooms.rooms == -1).nonzero().flatten()
    middle = cells[len(cells) // 2]
    found = []
    for action in (MOVES.index((0, -1)), MOVES.index((0, 1))):
        state = rooms.state(middle, torch.tensor(action), torch.tensor(False))
        found.append(learner.shared_log_probs[:, state, action].exp())
    return torch.stack(found).mean(0).tolist()


def compare(by_variant: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    found = []
    for measure, better, worse in ORDERINGS:
        difference = np.subtract(by_variant[better][measure], by_variant[worse][measure])
        low, high = bootstrap_interval(difference)
        verdict = "holds" if low > 0 else "reversed" if high < 0 else "undecided"
        found.append(
            {
                "measure": measure,
                "better": better,
                "worse": worse,
                "difference": float(difference.mean()),
                "interval": [low, high],
                "verdict": verdict,
            }
        )
    return found


def measure_all() -> dict[str, Any]:
    rooms, begin = TwoRooms(), time.perf_counter()
    grid = list(itertools.product(BETAS, RATES))
    tuned = [Settings(a, beta, lr, two) for a, two in VARIANTS.values() for beta, lr in grid]
    returns, _ = run_all(rooms, tuned, TUNING_SEEDS, seed=1)
    auc = returns.mean((0, 2)).reshape(len(VARIANTS), len(grid))
    best = [grid[i] for i in auc.argmax(1)]
    chosen = [Settings(a, *at, two) for (a, two), at in zip(VARIANTS.values(), best, strict=True)]
    returns, learner = run_all(rooms, chosen, SEEDS, seed=2)
    onward = np.array(goes_on(rooms, learner)).reshape(len(VARIANTS), len(SEEDS)).mean(1)
    variants = {}
    for i, name in enumerate(VARIANTS):
        curve = returns[:, i].reshape(-1, WINDOW, len(SEEDS)).mean(1)
        variants[name] = {
            "beta": chosen[i].beta,
            "lr": chosen[i].lr,
            **{key: np.round(values, 4).tolist() for key, values in measures(returns[:, i]).items()},
            "curve": np.round(curve.mean(1), 4).tolist(),
            "goes_on": round(float(onward[i]), 4) if chosen[i].alpha else None,
            "grid": dict(zip([f"beta {b:g}, lr {lr:g}" for b, lr in grid], np.round(auc[i], 4).tolist(), strict=True)),
        }
    return {
        "protocol": f"{NUM_TASKS} tasks, {EPISODES} episodes of 100 steps at most, {len(SEEDS)} seeds; beta and lr by "
        f"{len(TUNING_SEEDS)} other seeds; returns without discount, of the noisy policy, mean over tasks",
        "seconds": round(time.perf_counter() - begin),
        "episodes_per_point": WINDOW,
        "variants": variants,
        "orderings": compare(variants),
    }


def show(result: dict[str, Any]) -> None:
    print(result["protocol"], f"({result['seconds']} s)\n")
    print("| variant | beta | lr | area under the curve | first fifth | last tenth | mean of the grid | goes on |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, own in result["variants"].items():
        cells = []
        for measure in MEASURES:
            low, high = bootstrap_interval(own[measure])
            cells.append(f"{np.mean(own[measure]):.3f} [{low:.3f}, {high:.3f}]")
        onward = "" if own["goes_on"] is None else f"{own['goes_on']:.2f}"
        everywhere = f"{np.mean(list(own['grid'].values())):.3f}"
        print(f"| {name} | {own['beta']:g} | {own['lr']:g} | {' | '.join(cells)} | {everywhere} | {onward} |")
    print("\n| measure | expected | difference | interval | |\n| --- | --- | --- | --- | --- |")
    for row in result["orderings"]:
        low, high = row["interval"]
        expected = f"{row['better']} before {row['worse']}"
        print(
            f"| {row['measure']} | {expected} | {row['difference']:.3f} | [{low:.3f}, {high:.3f}] | {row['verdict']} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true", help="print the stored result")
    if parser.parse_args().show:
        show(json.loads(RESULT.read_text()))
        return
    torch.set_num_threads(1)
    result = measure_all()
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json_text(result) + "\n")
    show(result)


if __name__ == "__main__":
    main()
