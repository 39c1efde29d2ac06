"""Normalisation of observations, by statistics per feature or pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from mtrl import per_task
from mtrl.checks import positive
from mtrl.nn.torsos import check_pixels
from mtrl.registry import register
from mtrl.types import TaskAxes


class ObsNorm(nn.Module):
    """Base of the observation normalisers."""

    reads_task: bool = True
    """Whether what comes out depends on the task's id."""

    def forward(self, obs: Shaped[Tensor, "..."], task: Int[Tensor, "*batch"]) -> Float[Tensor, "..."]:
        """The normalised observations (*batch, *obs); the raw ones stay as they are."""
        raise NotImplementedError

    def update(self, obs: Shaped[Tensor, "..."], task: Int[Tensor, "*batch"]) -> None:
        """Adds a batch of raw observations to the statistics."""


@register("obs_norm", "none")
class NoObsNorm(ObsNorm):
    """Leaves flat observations as they are."""

    reads_task = False

    def forward(self, obs: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch F"]:
        return obs


@register("obs_norm", "running")
class RunningNorm(ObsNorm):
    """Standardises each feature with the mean and variance of all observations seen, and clips to +-`clip`.

    Batches are merged with Chan et al.'s (1979) parallel update, in float64. A constant feature maps to zero.
    """

    reads_task = False
    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, obs_shape: Sequence[int], clip: float = 10.0, epsilon: float = 1e-8) -> None:
        super().__init__()
        positive(clip=clip, epsilon=epsilon)
        self.clip = clip
        self.epsilon = epsilon
        self.register_buffer("mean", torch.zeros(*obs_shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(*obs_shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, obs: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch F"]:
        scaled = (obs - self.mean.float()) * torch.rsqrt(self.var + self.epsilon).float()
        return scaled.clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, obs: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> None:
        batch = obs.flatten(0, -2).double()
        n = batch.shape[0]
        delta = batch.mean(0) - self.mean
        total = self.count + n
        squares = self.var * self.count + batch.var(0, unbiased=False) * n + delta.square() * self.count * n / total
        self.mean += delta * n / total
        self.var.copy_(squares / total)
        self.count.copy_(total)


@register("obs_norm", "scaled_images")
class ScaledImages(ObsNorm):
    """Images (C, H, W) of 0 to 255 as numbers of 0 to 1.

    Raises:
        ValueError: Observations of another shape.
    """

    reads_task = False

    def __init__(self, obs_shape: Sequence[int]) -> None:
        super().__init__()
        check_pixels(obs_shape)

    def forward(
        self, obs: Shaped[Tensor, "*batch C H W"], task: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch C H W"]:
        return _scaled(_floats(obs)).reshape(obs.shape)


@register("obs_norm", "centred_images")
class CentredImages(ObsNorm):
    """Images without the mean image of their task: what stands still is zero, and what moves is seen.

    Without it, almost all that a convolution answers with is the background, the same in every image: its units are
    on or off for good, and what moves can hardly switch one.

    Images are stacks of gray frames, (C, H, W) of 0 to 255, the newest last. The mean is over all newest frames of
    the task that were seen, in float64; the result is in units of 255.

    Raises:
        ValueError: Observations of another shape.
    """

    mean: Tensor
    count: Tensor
    task_axes: ClassVar[TaskAxes] = {"mean": (0,), "count": (0,)}

    def __init__(self, obs_shape: Sequence[int], num_tasks: int) -> None:
        super().__init__()
        check_pixels(obs_shape)
        self.register_buffer("mean", torch.zeros(num_tasks, 1, *obs_shape[1:], dtype=torch.float64))
        self.register_buffer("count", torch.zeros(num_tasks, 1, 1, 1, dtype=torch.float64))

    def forward(
        self, obs: Shaped[Tensor, "*batch C H W"], task: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch C H W"]:
        images = _floats(obs)
        images -= self.mean.to(images.dtype)[task.flatten()]
        return _scaled(images).reshape(obs.shape)

    @torch.no_grad()
    def update(self, obs: Shaped[Tensor, "*batch C H W"], task: Int[Tensor, "*batch"]) -> None:
        newest = obs[..., -1, :, :].reshape(-1, *self.mean.shape[1:]).double()
        sums = torch.zeros_like(self.mean).index_add_(0, task.flatten(), newest)
        counts = per_task.count(task, len(self.mean)).reshape(self.count.shape)
        self.count += counts
        self.mean += (sums - counts * self.mean) / self.count.clamp(min=1)


def _floats(images: Shaped[Tensor, "*batch C H W"]) -> Float[Tensor, "N C H W"]:
    """A copy to work on in place, as arrays of this size are dear."""
    return images.reshape(-1, *images.shape[-3:]).to(torch.get_default_dtype(), copy=True)


def _scaled(images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    """In units of 255, with the channels innermost: convolutions take half the time on a CPU then."""
    return images.div_(255).contiguous(memory_format=torch.channels_last)
