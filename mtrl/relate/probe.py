"""What networks do in each task with the same observations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from mtrl.nn.distributions import Categorical
from mtrl.nn.networks import PolicyNetwork
from mtrl.types import Actor, Metrics


class Recorder:
    """An actor that keeps observations which it acts on: of each task, a sample of all.

    Args:
        tasks: Ids of the tasks to keep observations of.
        number: Of observations of each task, at most.
    """

    def __init__(self, actor: Actor, tasks: Sequence[int], number: int, seed: int) -> None:
        self.actor, self.number = actor, number
        self.kept: dict[int, list[Tensor]] = {task: [] for task in tasks}
        self._seen = dict.fromkeys(tasks, 0)
        self._generator = torch.Generator().manual_seed(seed)
        self.initial_state = actor.initial_state

    def act(self, obs: Tensor, task: Tensor, state: Tensor, explore: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See `Actor.act`."""
        for slot, k in enumerate(task.tolist()):
            if k in self.kept:
                self._keep(obs[slot], k)
        return self.actor.act(obs, task, state, explore)

    def _keep(self, obs: Tensor, task: int) -> None:
        """Reservoir sampling: every observation is as likely to stay."""
        self._seen[task] += 1
        place = int(torch.randint(self._seen[task], (), generator=self._generator))
        if len(self.kept[task]) < self.number:
            self.kept[task].append(obs.clone())
        elif place < self.number:
            self.kept[task][place] = obs.clone()


@dataclass(frozen=True)
class Probe:
    """K tasks, the network that acts in each, and N observations from all of them."""

    tasks: tuple[str, ...]
    networks: tuple[PolicyNetwork, ...]
    """Of each task."""
    ids: tuple[int, ...]
    """Of each task in its network."""
    obs: Shaped[Tensor, "N *obs"]
    task: Int[Tensor, " N"]
    """Place in `tasks` of the task that an observation comes from."""
    run: Path | None = None
    """The run that made the network, if there is one network and its run is there."""

    @torch.no_grad()
    def layers(self) -> dict[str, Float[Tensor, "K N H"]]:
        """Features of all observations, as seen in each task, by layer of the trunk; its output is the last.

        A layer is a part of the trunk without parts, whose output depends on both observation and task; one that is
        used several times has a number. Of several networks, the layers that all have with the same size.
        """
        by_task = [self._record(network, task) for network, task in zip(self.networks, self.ids, strict=True)]
        common = {}
        for name, features in by_task[0].items():
            if all(name in other and other[name].shape == features.shape for other in by_task):
                every = torch.stack([other[name] for other in by_task])
                if name == "output" or ((every != every[:, :1]).any() and (every != every[:1]).any()):
                    common[name] = every
        return common

    def _record(self, network: PolicyNetwork, task: int) -> dict[str, Float[Tensor, "N H"]]:
        calls: dict[str, list[Tensor]] = defaultdict(list)

        def keep(name: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.is_floating_point() and len(output) == len(self.obs):
                    calls[name].append(output.flatten(1).clone())

            return hook

        parts = [(n, part) for n, part in network.trunk.named_modules() if n and not list(part.children())]
        hooks = [part.register_forward_hook(keep(name)) for name, part in parts]
        hooks.append(network.trunk.register_forward_hook(keep("output")))
        try:
            network(self.obs, torch.full_like(self.task, task))
        finally:
            for hook in hooks:
                hook.remove()
        return {
            name if len(outputs) == 1 else f"{name}.{i}": output
            for name, outputs in calls.items()
            for i, output in enumerate(outputs)
        }

    def input_gradients(self) -> Float[Tensor, "K N P"]:
        """Gradients of the outputs of the policy with respect to the observation, as seen in each task.

        Outputs are the means of a Gaussian, or log-probabilities. The gradients of all outputs are side by side. The
        unit of an entry of the observation is its standard deviation over all N.
        """
        return torch.stack([self._gradients(*member) for member in zip(self.networks, self.ids, strict=True)])

    def _gradients(self, network: PolicyNetwork, task: int) -> Float[Tensor, "N P"]:
        obs = self.obs.float().requires_grad_()
        distribution: Any = network(obs, torch.full_like(self.task, task))
        outputs = distribution.log_probs if isinstance(distribution, Categorical) else distribution.mean
        columns = (outputs * distribution.mask).sum(0)
        unit = obs.detach().std(0)
        return torch.cat(
            [(torch.autograd.grad(one, obs, retain_graph=True)[0] * unit).flatten(1) for one in columns], 1
        )

    @torch.no_grad()
    def diagnostics(self) -> Metrics:
        """The trunk's diagnostics of each task in its own observations (`Trunk.aux`), if there is one network."""
        network, reported = self.networks[0], {}

        def keep(module: Any, args: Any) -> None:
            reported["metrics"] = module.aux(*args)[1]

        hook = network.trunk.register_forward_pre_hook(keep)
        try:
            network(self.obs, torch.tensor(self.ids, device=self.task.device)[self.task])
        finally:
            hook.remove()
        return {name: value[list(self.ids)] for name, value in reported["metrics"].items() if value.ndim}
