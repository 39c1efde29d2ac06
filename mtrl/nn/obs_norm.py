"""Normalisation of observations, with statistics per feature or pixel."""

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
from mtrl.types import ONE_PROCESS, Ranks, TaskAxes


class ObsNorm(nn.Module):
    """Base of the observation normalisers."""

    reads_task: bool = True
    """Whether the output depends on the task id."""
    ranks: Ranks = ONE_PROCESS
    """Whose observations an `update` is with: the statistics must become the same in all of them."""

    def forward(self, obs: Shaped[Tensor, "..."], task: Int[Tensor, "*batch"]) -> Float[Tensor, "..."]:
        """Returns the normalised observations (*batch, *obs), without modifying `obs`."""
        raise NotImplementedError

    def update(self, obs: Shaped[Tensor, "..."], task: Int[Tensor, "*batch"]) -> None:
        """Adds a batch of raw observations to the statistics, unless they are fixed (`nn.Module.eval`)."""
        if self.training:
            self._observe(obs, task)

    def _observe(self, obs: Shaped[Tensor, "..."], task: Int[Tensor, "*batch"]) -> None:
        """Adds a batch of raw observations to the statistics."""


@register("obs_norm", "none")
class NoObsNorm(ObsNorm):
    """Returns flat observations unchanged.

    Use it for observations that are about 1 in size already.
    """

    reads_task = False

    def forward(self, obs: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch F"]:
        return obs


@register("obs_norm", "running")
class RunningNorm(ObsNorm):
    """Standardises each feature with the mean and variance of all observations seen, and clips to +-`clip`.

    Batches are merged with Chan et al.'s (1979) parallel update, in float64. A constant feature maps to zero.

    Use it for vectors whose entries have different units or sizes.
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
    def _observe(self, obs: Float[Tensor, "*batch F"], task: Int[Tensor, "*batch"]) -> None:
        batch = obs.flatten(0, -2).double()
        n = batch.shape[0]  # the same in all ranks
        for mean, var in self.ranks.each(torch.stack([batch.mean(0), batch.var(0, unbiased=False)])):
            delta = mean - self.mean
            total = self.count + n
            squares = self.var * self.count + var * n + delta.square() * self.count * n / total
            self.mean += delta * n / total
            self.var.copy_(squares / total)
            self.count.copy_(total)


@register("obs_norm", "scaled_images")
class ScaledImages(ObsNorm):
    """Scales images (C, H, W) from [0, 255] to [0, 1].

    Use it for images.

    Raises:
        ValueError: Observations have another shape.
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
    """Subtracts the mean image of the task: what stands still becomes zero, and what moves stands out.

    Without it, the response of a convolution is almost only that to the background, the same in every image: its units
    are permanently on or off, and what moves can hardly switch one.

    Images are stacks of grayscale frames (C, H, W) in [0, 255], newest last. The mean is over all newest frames of the
    task seen so far, in float64; the result is divided by 255.

    Use it for games whose background never changes.

    Raises:
        ValueError: Observations have another shape.
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
    def _observe(self, obs: Shaped[Tensor, "*batch C H W"], task: Int[Tensor, "*batch"]) -> None:
        newest = obs[..., -1, :, :].reshape(-1, *self.mean.shape[1:]).double()
        sums = torch.zeros_like(self.mean).index_add_(0, task.flatten(), newest)
        counts = per_task.count(task, len(self.mean)).reshape(self.count.shape)
        sums, counts = self.ranks.sum(sums), self.ranks.sum(counts)
        self.count += counts
        self.mean += (sums - counts * self.mean) / self.count.clamp(min=1)


def _floats(images: Shaped[Tensor, "*batch C H W"]) -> Float[Tensor, "N C H W"]:
    """Copies images as floats, which are then modified in place, because arrays of this size are expensive."""
    return images.reshape(-1, *images.shape[-3:]).to(torch.get_default_dtype(), copy=True)


def _scaled(images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    """Divides by 255 in place, and orders channels last: convolutions then take half the time on a CPU."""
    return images.div_(255).contiguous(memory_format=torch.channels_last)
