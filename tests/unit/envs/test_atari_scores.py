"""Human-normalised scores, against hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from mtrl.envs.atari.scores import REFERENCES, human_normalised, human_normalised_scores, interquartile_mean


def test_random_is_0_and_human_is_1() -> None:
    for game, (random, human) in REFERENCES.items():
        assert human_normalised(game, random) == 0
        assert human_normalised(game, human) == 1
    assert human_normalised("pong", 20.0) == pytest.approx(40.7 / 35.3)  # (20 + 20.7) / (14.6 + 20.7)
    assert human_normalised("double_dunk", -17.5) == pytest.approx(0.5)  # 1.1 / 2.2


def test_interquartile_mean() -> None:
    # A quarter of 8 values is cut at each end: (2 + 3 + 4 + 5) / 4.
    assert interquartile_mean(np.array([7.0, 100, 3, 5, 2, -100, 4, 1])) == 3.5
    # A quarter of 5 is one, rounded down: (1 + 2 + 3) / 3; of 3 none: (0 + 1 + 5) / 3.
    assert interquartile_mean(np.array([9.0, 1, 2, 3, -9])) == 2
    assert interquartile_mean(np.array([0.0, 1, 5])) == 2


def test_scores_of_several_games() -> None:
    # Boxing: (6.1 - 0.1) / 12 = 0.5. Freeway: 29.6 / 29.6 = 1. Breakout: (59.3 - 1.7) / 28.8 = 2. Venture: 0.
    found = human_normalised_scores(
        {"boxing": 6.1, "freeway": 29.6, "breakout": 59.3, "venture": 0.0, "carnival": 5335.0}
    )
    assert found == {
        "human_normalised_iqm": pytest.approx(0.75),  # (0.5 + 1) / 2
        "human_normalised_median": pytest.approx(0.75),
        "human_normalised_capped_mean": pytest.approx(0.625),  # (0.5 + 1 + 1 + 0) / 4
        "human_normalised/boxing": pytest.approx(0.5),
        "human_normalised/freeway": pytest.approx(1.0),
        "human_normalised/breakout": pytest.approx(2.0),
        "human_normalised/venture": 0.0,
    }
    assert human_normalised_scores({"carnival": 5335.0, "air_raid": 5146.5}) == {}
