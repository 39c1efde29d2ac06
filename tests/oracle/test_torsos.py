"""Torsos: sizes by hand arithmetic, leading shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mtrl.nn.networks import build_policy
from mtrl.nn.torsos import Differences, NatureCNN, NoTorso, PixelTorso, Torso
from mtrl.registry import build, names
from mtrl.types import UserError
from tests.helpers import describe, make_spec

SHAPE = (4, 84, 84)
POINTS = {"points": [0, 1], "scales": [0.1], "axes": 1}
PIXELS = [name for name in names("torso") if name not in ("none", "differences")]


def make(name: str, **options: Any) -> Torso:
    torch.manual_seed(0)
    return build("torso", {"name": name, **options}, obs_shape=SHAPE)


@pytest.mark.parametrize(
    ("name", "features", "parameters"),
    [
        # 84 -> (84 - 8) / 4 + 1 = 20 -> (20 - 4) / 2 + 1 = 9 -> 9 - 3 + 1 = 7, 7 * 7 * 64 = 3136 features.
        # (4 * 8 * 8 + 1) * 32 + (32 * 4 * 4 + 1) * 64 + (64 * 3 * 3 + 1) * 64 + (3136 + 1) * 512
        #   = 8224 + 32832 + 36928 + 1606144
        ("nature_cnn", 512, 1_684_128),
        # 84 -> 20 -> 9, 9 * 9 * 32 = 2592. (4 * 8 * 8 + 1) * 16 + (16 * 4 * 4 + 1) * 32 + (2592 + 1) * 256
        #   = 4112 + 8224 + 663808
        ("shallow_cnn", 256, 676_144),
        # 84 -> 42 -> 21 -> 11, 11 * 11 * 32 = 3872. A 3x3 convolution of n to m channels has (9 n + 1) m parameters.
        # First ones: 4 to 16: 592; 16 to 32: 4640; 32 to 32: 9248. Four in blocks: 4 * 2320; 4 * 9248; 4 * 9248.
        #   592 + 9280 + 4640 + 36992 + 9248 + 36992 = 97744, and (3872 + 1) * 256 = 991488
        ("impala_resnet", 256, 1_089_232),
    ],
)
def test_sizes(name: str, features: int, parameters: int) -> None:
    torso = make(name)
    assert torso.out_features == features
    assert sum(p.numel() for p in torso.parameters()) == parameters


def test_a_smaller_shallow_cnn() -> None:
    """84 -> 20 -> 9, 9 * 9 * 8 = 648. (256 + 1) * 4 + (4 * 4 * 4 + 1) * 8 + (648 + 1) * 40 = 1028 + 520 + 25960."""
    assert sum(p.numel() for p in make("shallow_cnn", width=40, channels=[4, 8]).parameters()) == 27_508


def test_channels_are_those_of_two_convolutions() -> None:
    with pytest.raises(UserError, match=r"channels must be two numbers, one for each convolution, not \[4\]"):
        make("shallow_cnn", channels=[4])


def test_every_torso_is_counted() -> None:
    assert PIXELS == ["impala_resnet", "nature_cnn", "shallow_cnn"]


@pytest.mark.parametrize("name", PIXELS)
def test_leading_shapes_and_gradients(name: str) -> None:
    torso = make(name, width=8)
    obs = torch.rand(2, 3, *SHAPE)
    whole = torso(obs, obs)
    assert whole.shape == (2, 3, 8)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(torso(obs[1], obs[1]), whole[1])
    torch.testing.assert_close(torso(obs[1, 2], obs[1, 2]), whole[1, 2])
    assert not torch.equal(whole[0, 0], whole[1, 2])
    whole.square().sum().backward()
    for key, parameter in torso.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.any(), key


def test_maps_and_units() -> None:
    """Two pixels, 1 and 0.2, each with weight 1: 1.2. Below zero the ReLU cuts."""
    torso = PixelTorso((1, 1, 2), nn.Identity(), 2)
    with torch.no_grad():
        torso.linear.weight.copy_(torch.tensor([[1.0, 1.0], [-1.0, 0.0]]))
        torso.linear.bias.zero_()
    image = torch.tensor([[[1.0, 0.2]]])
    torch.testing.assert_close(torso(image, image), torch.tensor([1.2, 0.0]))


def test_the_other_kind_of_observation_is_refused() -> None:
    with pytest.raises(ValueError, match="need torso=nature_cnn"):
        NoTorso(SHAPE)
    with pytest.raises(ValueError, match=r"\(39,\) are not images: use torso=none"):
        NatureCNN((39,))
    with pytest.raises(ValueError, match="images of 7 by 9 pixels are too small for it"):
        NatureCNN((3, 7, 9))
    with pytest.raises(UserError, match="torso 'impala_resnet'"):
        build("torso", {"name": "impala_resnet"}, obs_shape=(39,))


def test_differences() -> None:
    """Two points in the plane, (0.1, 0.5) and (0.4, 0.1), after another number: their difference is (-0.3, 0.4).

    They are appended to the normalised observations, here zeros, which begin with two transitions of three numbers.
    """
    torso = Differences((11,), (2, 3), points=[1, 3], scales=[0.1, 1.0], axes=2)
    found = torso(torch.zeros(11), torch.tensor([7.0] * 6 + [9.0, 0.1, 0.5, 0.4, 0.1]))
    # tanh(-3), tanh(-0.3), tanh(4), tanh(0.4)
    torch.testing.assert_close(found[:11], torch.zeros(11))
    torch.testing.assert_close(found[11:], torch.tensor([-0.9950548, -0.2913126, 0.9993293, 0.3799490]))
    assert torso.out_features == 15


@pytest.mark.parametrize(("points", "scales"), [([0], [1.0]), ([0, 3], [1.0]), ([-1, 1], [1.0]), ([0, 1], [0.0])])
def test_differences_of_other_observations_are_refused(points: list[int], scales: list[float]) -> None:
    with pytest.raises(ValueError, match=r"points=|scale"):
        Differences((7,), (1, 2), points, scales)


def test_differences_of_raw_observations_in_a_policy() -> None:
    """Observations are normalised, the differences beside them are not: tanh((0.2 - 0.5) / 0.1)."""
    description = describe("gaussian", obs_norm="running", torso={"name": "differences", **POINTS})
    policy = build_policy(description, make_spec(obs_dim=2))
    policy.obs_norm.mean.fill_(0.1)
    policy.obs_norm.var.fill_(0.04)
    found = policy.torso_features(torch.tensor([0.2, 0.5]), torch.tensor(0))
    torch.testing.assert_close(found, torch.tensor([0.5, 2.0, -0.9950548]))
