"""Learners in float32 with what they learn from; as a program, compiled ones against ordinary ones.

python -m tests.oracle.learners BACKEND    # prints a line for each learner that is equal
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch

from mtrl.agents.acceleration import compile_losses
from mtrl.distill.kickstart import TeacherLoss
from mtrl.distill.losses import Kind, kind_of, label_size
from mtrl.distill.schedules import Linear
from mtrl.distill.teachers import FunctionTeacher
from mtrl.registry import build
from tests.helpers import make_spec
from tests.oracle import test_cores, test_distral_agent, test_impala, test_sac

LEARNERS = ("sac", "impala", "distral", "two_columns", "lstm", "kickstarted_sac", "kickstarted_impala")


class TaughtBy(TeacherLoss):
    """By what says a quarter of the observation, with a coefficient that falls."""

    def __init__(self, kind: Kind, loss: str) -> None:
        spec = make_spec(test_sac.K, test_sac.OBS, 2)
        self._coefficient = self._rl_coefficient = Linear(0.1, 0.05)
        self.loss = build("distill_loss", {"name": loss})
        self.num_tasks, self.target_size = spec.num_tasks, label_size(kind, spec)
        self.teacher = FunctionTeacher(lambda obs, task: obs / 4, kind)
        self._mask = torch.tensor(spec.action_mask)


def make(agent: str, **options: Any) -> tuple[Any, Any]:
    """The same each time."""
    torch.manual_seed(0)
    if agent.startswith("kickstarted_"):
        learner, data = make(agent.removeprefix("kickstarted_"), **options)
        kind = kind_of(learner.policy.distribution_class)
        learner.aux_losses = {loss: TaughtBy(kind, loss) for loss in ("forward_kl", "reverse_kl", "mse", "nll")}
        return learner, data
    if agent == "sac":
        learner, data = test_sac.make_learner(**options), test_sac.make_batch()
    elif agent == "impala":
        learner, data = test_impala.make_learner(**options), test_impala.make_rollout()
    elif agent == "distral":
        learner, data = test_distral_agent.make_learner(**options), test_impala.make_rollout()
    elif agent == "two_columns":
        learner, data = test_distral_agent.make_learner(columns=2, **options), test_impala.make_rollout()
    else:
        spec = make_spec(test_cores.K, test_cores.OBS, 2)
        learner, data = test_cores.make_learner(spec, **options), test_cores.make_rollout()
    learner.networks.float()
    floats = {key: value.float() for key, value in vars(data).items() if value.is_floating_point()}
    return learner, dataclasses.replace(data, **floats)


def updated(learner: Any, data: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and metrics after three updates, with the schedule moving."""
    torch.manual_seed(1)
    for progress in (0.0, 0.3, 0.6):
        metrics = learner.update(data, progress)
    return learner.networks.state_dict(), metrics


def main(backend: str) -> None:
    """All learners, with all random numbers drawn as without compiling."""
    import torch._inductor.config as inductor

    inductor.fallback_random = True
    counters = torch._dynamo.utils.counters
    for agent in LEARNERS:
        torch.compiler.reset()
        counters.clear()
        eager = updated(*make(agent))
        learner, data = make(agent)
        compile_losses(learner, backend)
        for found, expected in zip(updated(learner, data), eager, strict=True):
            assert found.keys() == expected.keys()
            for key in expected:
                torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-5, equal_nan=True)
        assert not counters["graph_break"], counters["graph_break"]
        print(agent, counters["stats"]["unique_graphs"])


if __name__ == "__main__":
    main(sys.argv[1])
