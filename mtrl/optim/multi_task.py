"""`MultiTaskOptimizer`: from per-task losses to updated parameters, in every learner."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mtrl.optim.aggregation import Aggregation, JacobianAggregation
from mtrl.optim.aggregation.base import task_norm
from mtrl.optim.optimizers import restore
from mtrl.optim.weighting import Weighting
from mtrl.types import Metrics, NonFiniteLossError, State


class MultiTaskOptimizer:
    """Weighting, then gradient aggregation, then clipping by global norm, then the optimiser.

    A weighting that requires positive losses weights only the losses passed as `positive`; any other weights the sum of
    `positive` and `signed`.

    Args:
        parameters: Parameters to optimise.
        max_grad_norm: Global norm to clip to; infinity for none.
        has_positive: Whether the caller passes `positive` losses.

    Raises:
        ValueError: The weighting requires positive losses, and there are none.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        weighting: Weighting,
        aggregation: Aggregation,
        max_grad_norm: float,
        has_positive: bool,
    ) -> None:
        if weighting.requires_positive and not has_positive:
            raise ValueError(
                f"{type(weighting).__name__} weighting needs positive losses, but this loss can have either sign: "
                "use it for a critic or value loss."
            )
        self.parameters = list(parameters)
        self.optimizer, self.weighting, self.aggregation = optimizer, weighting, aggregation
        self.max_grad_norm = max_grad_norm
        self.frozen: Collection[nn.Parameter] = ()
        """Parameters that steps leave as they are. An aggregation still sees their gradients."""
        self._bad: list[Tensor] | None = None  # (K,), of the steps within `checked_once`

    def __call__(
        self,
        task: Int[Tensor, "*samples"],
        signed: Float[Tensor, " K"] | None = None,
        positive: Float[Tensor, " K"] | None = None,
        aux: Float[Tensor, ""] | None = None,
    ) -> Metrics:
        """One step on the losses of K tasks, computed from samples of the tasks `task`.

        Losses and gradients are joined over the ranks of the aggregation, so that all of them take the same step.

        Args:
            aux: A loss that belongs to no task: its gradient is added to the combined gradient of the tasks.

        Raises:
            NonFiniteLossError: A loss is NaN or infinite. No parameter is changed. (See `checked_once`.)
        """
        ranks = self.aggregation.ranks
        given = [losses for losses in (signed, positive) if losses is not None]
        joint = ranks.joint(torch.stack(given), task)
        total = joint.sum(0)
        if self._bad is not None:
            self._bad.append(~torch.isfinite(total))
            # With this the optimiser itself skips the step, as it does for `torch.amp.GradScaler`.
            self.optimizer.found_inf = self._bad[-1].any().float()  # type: ignore[attr-defined]
        elif not torch.isfinite(total.sum()):
            raise NonFiniteLossError((~torch.isfinite(total)).nonzero().flatten().tolist())
        if self.weighting.requires_positive:
            assert positive is not None
            to_weight, unweighted = joint[-1], None if signed is None else joint[0]
        else:
            to_weight, unweighted = total, None
        weighted = self.weighting(to_weight)
        needs_norm = self.weighting.requires_task_norm
        norm = {"task_norm": task_norm(weighted, self.parameters, task, ranks)} if needs_norm else {}
        self.optimizer.zero_grad(set_to_none=True)
        losses = weighted if unweighted is None else weighted + unweighted
        metrics = self.aggregation.backward(losses, self.parameters, task)
        if aux is not None and aux.requires_grad:
            aux.backward()
            ranks.sum_gradients(self.parameters, mean=True)  # of the tasks' gradient, too, which is the same everywhere
        for parameter in self.frozen:
            parameter.grad = None  # which torch's optimisers skip, with momentum and weight decay
        metrics["norm"] = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.weighting.after_step(to_weight.detach(), metrics | norm)
        metrics["task_weight"] = (weighted / to_weight).detach()  # NaN for an absent task
        return metrics

    def set_lr_factor(self, factor: float) -> None:
        """Sets every learning rate to `factor` times its initial value."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def restart(self, fresh: State) -> None:
        """Clears the state of the optimiser, and sets weighting and aggregation to those in `fresh` (`state_dict`)."""
        self.optimizer.state.clear()
        self.weighting.load_state_dict(fresh["weighting"])
        self.aggregation.load_state_dict(fresh["aggregation"])

    def state_dict(self) -> State:
        return {
            "optimizer": self.optimizer.state_dict(),
            "weighting": self.weighting.state_dict(),
            "aggregation": self.aggregation.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        restore(self.optimizer, state["optimizer"])
        self.weighting.load_state_dict(state["weighting"])
        self.aggregation.load_state_dict(state["aggregation"])

    def _can_skip(self) -> bool:
        """Whether it would wait to find out that a loss is not finite, and can leave out a step without."""
        fused = all(group.get("fused") for group in self.optimizer.param_groups)
        there = self.parameters[0].device.type != "cpu"
        return there and fused and not isinstance(self.aggregation, JacobianAggregation)

    def start_skipping(self) -> None:
        """From now on the accelerator itself leaves out the steps of losses that are not finite, where it can."""
        if self._can_skip():
            self._bad = []

    def stop_skipping(self) -> list[Bool[Tensor, " K"]]:
        """Of each step that has not looked itself, the tasks whose loss was not finite."""
        bad, self._bad = self._bad or [], None
        self.optimizer.found_inf = None  # type: ignore[attr-defined]
        return bad


@contextmanager
def checked_once(optimizers: Iterable[MultiTaskOptimizer]) -> Iterator[None]:
    """Steps within it wait for an accelerator once, at the end, to see whether all losses were finite.

    Until then the accelerator leaves out the steps of those that are not, so that no parameter is changed by them. On a
    CPU, and where gradients of tasks are combined on the host, each step looks at once.

    Raises:
        NonFiniteLossError: A loss was NaN or infinite.
    """
    steps = list(optimizers)
    for step in steps:
        step.start_skipping()
    try:
        yield
    finally:
        bad = [tasks for step in steps for tasks in step.stop_skipping()]
    if bad and (tasks := torch.stack(bad).any(0)).any():
        raise NonFiniteLossError(tasks.nonzero().flatten().tolist())


class SeparateSteps:
    """Updates a policy and a value network that share no parameters, each with its own optimiser."""

    def __init__(self, policy: MultiTaskOptimizer, value: MultiTaskOptimizer) -> None:
        self.by_name = {"policy": policy, "value": value}

    def __call__(
        self,
        task: Int[Tensor, "*samples"],
        policy: Float[Tensor, " K"],
        value: Float[Tensor, " K"],
        policy_aux: Float[Tensor, ""],
        value_aux: Float[Tensor, ""],
    ) -> Metrics:
        """One step on each of the losses: see `MultiTaskOptimizer`. Raises `NonFiniteLossError`."""
        policy_metrics = self.by_name["policy"](task, signed=policy, aux=policy_aux)
        value_metrics = self.by_name["value"](task, positive=value, aux=value_aux)
        return {
            **{f"policy_{key}": metric for key, metric in policy_metrics.items()},
            **{f"value_{key}": metric for key, metric in value_metrics.items()},
        }


class JointStep:
    """Updates a policy and a value network with a common torso by one step on the sum of their losses."""

    def __init__(self, step: MultiTaskOptimizer) -> None:
        self.by_name = {"joint": step}

    def __call__(
        self,
        task: Int[Tensor, "*samples"],
        policy: Float[Tensor, " K"],
        value: Float[Tensor, " K"],
        policy_aux: Float[Tensor, ""],
        value_aux: Float[Tensor, ""],
    ) -> Metrics:
        """One step on the sum of the losses: see `MultiTaskOptimizer`. Raises `NonFiniteLossError`."""
        return self.by_name["joint"](task, signed=policy, positive=value, aux=policy_aux + value_aux)
