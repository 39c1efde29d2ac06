"""Torsos: observations to flat features, the input of trunks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from mtrl.checks import positive
from mtrl.nn.precision import MixedPrecision
from mtrl.registry import register


class Torso(MixedPrecision):
    """Base of the torsos."""

    out_features: int
    """F, the size of the output."""
    begins_with_obs: bool = False
    """Whether the first features are the observation."""

    def forward(self, obs: Float[Tensor, "..."], raw: Shaped[Tensor, "..."]) -> Float[Tensor, "*batch F"]:
        """Features of normalised observations (*batch, *obs); `raw` are the same in the units of the environment."""
        raise NotImplementedError


@register("torso", "none")
class NoTorso(Torso):
    """Identity on flat observations.

    Use it for vectors.
    """

    begins_with_obs = True

    def __init__(self, obs_shape: Sequence[int]) -> None:
        super().__init__()
        if len(obs_shape) != 1:
            raise ValueError(f"observations of shape {tuple(obs_shape)} need torso=nature_cnn or another for pixels.")
        (self.out_features,) = obs_shape

    def forward(self, obs: Float[Tensor, "..."], raw: Shaped[Tensor, "..."]) -> Float[Tensor, "*batch F"]:
        return obs


@register("torso", "differences")
class Differences(Torso):
    """Appends to flat observations how far points in them are from one another, at several scales.

    tanh((p_i - p_j) / scale) for all pairs of points, all axes and all scales. A controller acts on such differences
    within centimetres, while the points themselves vary within decimetres. The differences are those of raw
    observations, whatever the observations that they are appended to are normalised by.

    Use it where a vector holds the positions of several things in one frame, as Meta-World's does.

    Args:
        history: Transitions, and size of each, at the beginning of an observation, before what `points` counts.
        points: Index of the first coordinate of each point in an observation.
        scales: In the units of the observation.
        axes: Number of coordinates of a point.

    Raises:
        ValueError: Observations are not flat, a point lies outside of them, or a scale is not positive.
    """

    begins_with_obs = True
    left: Tensor
    right: Tensor
    scales: Tensor

    def __init__(
        self,
        obs_shape: Sequence[int],
        history: tuple[int, int],
        points: Sequence[int],
        scales: Sequence[float],
        axes: int = 3,
    ) -> None:
        super().__init__()
        self.out_features = NoTorso(obs_shape).out_features
        past = history[0] * history[1]
        size = self.out_features - past
        if len(points) < 2 or not 0 <= min(points) <= max(points) <= size - axes:
            raise ValueError(f"points={list(points)}: expected two or more in observations of {size}.")
        for scale in scales:
            positive(scale=scale)
        pairs = past + torch.tensor(list(itertools.combinations(points, 2)))
        left, right = (pairs[:, :, None] + torch.arange(axes)).unbind(1)
        self.register_buffer("left", left.flatten(), persistent=False)
        self.register_buffer("right", right.flatten(), persistent=False)
        self.register_buffer("scales", torch.tensor(scales), persistent=False)
        self.out_features += left.numel() * len(scales)

    def forward(self, obs: Float[Tensor, "*batch D"], raw: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch F"]:
        difference = raw[..., self.left] - raw[..., self.right]
        return torch.cat([obs, (difference[..., None] / self.scales).tanh().flatten(-2)], -1)


class PixelTorso(Torso):
    """Base of the torsos for normalised images (C, H, W): `layers`, then a linear layer of `width` units and ReLU.

    Args:
        width: Units of the last layer.
        layers: Images to feature maps.

    Raises:
        ValueError: The images are smaller than a filter.
    """

    def __init__(self, obs_shape: Sequence[int], layers: nn.Module, width: int) -> None:
        super().__init__()
        positive(width=width)
        self.layers, self.out_features = layers, width
        try:
            with torch.no_grad():
                maps = layers(torch.zeros(1, *obs_shape))
        except RuntimeError as error:
            size = f"{obs_shape[1]} by {obs_shape[2]}"
            raise ValueError(f"images of {size} pixels are too small for it: use torso=impala_resnet.") from error
        self.linear = nn.Linear(maps.numel(), width)

    def forward(self, obs: Float[Tensor, "..."], raw: Shaped[Tensor, "..."]) -> Float[Tensor, "*batch F"]:
        maps = self.layers(obs.reshape(-1, *obs.shape[-3:]))
        features = functional.relu(self.linear(maps.flatten(1)))
        return features.reshape(*obs.shape[:-3], self.out_features)


def check_pixels(obs_shape: Sequence[int]) -> None:
    """Raises `ValueError` unless the shape is that of an image."""
    if len(obs_shape) != 3:
        raise ValueError(
            f"observations of shape {tuple(obs_shape)} are not images: use torso=none and obs_norm=none or running."
        )


def orthogonal(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Initialises a layer with orthogonal weights, for a ReLU after it, and zero biases. Returns the layer."""
    nn.init.orthogonal_(layer.weight, 2**0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def convolutions(obs_shape: Sequence[int], sizes: Sequence[tuple[int, int, int]]) -> nn.Sequential:
    """Convolutions of (channels, kernel, stride) without padding, each followed by a ReLU."""
    check_pixels(obs_shape)
    modules: list[nn.Module] = []
    inputs = obs_shape[0]
    for channels, kernel, stride in sizes:
        modules += [orthogonal(nn.Conv2d(inputs, channels, kernel, stride)), nn.ReLU()]
        inputs = channels
    return nn.Sequential(*modules)


@register("torso", "nature_cnn")
class NatureCNN(PixelTorso):
    """Three convolutions (Mnih et al., "Human-level control through deep reinforcement learning", 2015).

    Use it for comparisons with agents that have this network, such as DQN.
    """

    def __init__(self, obs_shape: Sequence[int], width: int = 512) -> None:
        super().__init__(obs_shape, convolutions(obs_shape, ((32, 8, 4), (64, 4, 2), (64, 3, 1))), width)
        orthogonal(self.linear)


@register("torso", "shallow_cnn")
class ShallowCNN(PixelTorso):
    """Two convolutions: the shallow network of IMPALA and A3C (Mnih et al. 2016), with a third of Nature's FLOPs.

    Use it where time is short, and with fewer channels for small students.

    Args:
        channels: Channels of each convolution.

    Raises:
        ValueError: `channels` are not two.
    """

    def __init__(self, obs_shape: Sequence[int], width: int = 256, channels: Sequence[int] = (16, 32)) -> None:
        if len(channels) != 2:
            raise ValueError(f"channels must be two numbers, one for each convolution, not {list(channels)}.")
        first, second = channels
        super().__init__(obs_shape, convolutions(obs_shape, ((first, 8, 4), (second, 4, 2))), width)
        orthogonal(self.linear)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        return x + self.second(functional.relu(self.first(functional.relu(x))))


@register("torso", "impala_resnet")
class ImpalaResNet(PixelTorso):
    """IMPALA's deep network: 15 convolutions in three sections (Espeholt et al. 2018, figure 3).

    Each section: a convolution, max-pooling with stride 2, two residual blocks. Initial weights are torch's defaults.

    Use it for many games in one network, where there is time.

    Args:
        channels: Channels of each section.
    """

    def __init__(self, obs_shape: Sequence[int], width: int = 256, channels: Sequence[int] = (16, 32, 32)) -> None:
        check_pixels(obs_shape)
        modules: list[nn.Module] = []
        inputs = obs_shape[0]
        for outputs in channels:
            modules += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
            modules += [ResidualBlock(outputs), ResidualBlock(outputs)]
            inputs = outputs
        super().__init__(obs_shape, nn.Sequential(*modules, nn.ReLU()), width)
