"""Modular policies: a module for the goal followed by a module for the robot."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.checks import positive
from mtrl.nn.layers import ACTIVATIONS, Activation, Init, StackedMLP, select
from mtrl.nn.trunks.base import Trunk
from mtrl.registry import register
from mtrl.types import TaskAxes, TaskContext


@register("trunk", "modular")
class Modular(Trunk):
    """g_robot(f_goal(s_goal), s_robot) (Devin et al., "Learning Modular Neural Network Policies", 2017).

    Each of the K tasks of the environment is a pair of a goal and a robot. Without `goals` and `robots`, every task has
    its own goal and all share one robot. All modules run on every sample.

    Use it where tasks are combinations, such as robots and goals, and new combinations will come.

    Args:
        depth: Layers of each module.
        goals: Which goal module each of the K tasks uses, from 0.
        robots: Which robot module each of the K tasks uses, from 0.
        robot_features: Number of features at the beginning of the observation that are the robot's state, s_robot; the
            others are s_goal. Null: both modules get all of them.
        interface: Size of f's output; small, so that modules can be recombined.
    """

    def __init__(
        self,
        features: int,
        num_tasks: int,
        width: int = 256,
        depth: int = 2,
        goals: list[int] | None = None,
        robots: list[int] | None = None,
        robot_features: int | None = None,
        interface: int = 32,
        activation: Activation = "relu",
        init: Init = "he_uniform",
    ) -> None:
        super().__init__()
        positive(width=width, depth=depth, interface=interface)
        goal_of_own = not goals
        goals, robots = goals or list(range(num_tasks)), robots or [0] * num_tasks
        for name, modules in (("goals", goals), ("robots", robots)):
            if len(modules) != num_tasks or set(modules) != set(range(max(modules) + 1)):
                raise ValueError(f"{name} must number the modules of the {num_tasks} tasks from 0, not {modules}.")
        if robot_features is not None and not 0 < robot_features < features:
            raise ValueError(f"robot_features must be from 1 to {features - 1}, not {robot_features}.")
        self.robot_features = slice(robot_features)
        self.goal_features = slice(robot_features, None) if robot_features else slice(None)
        self.register_buffer("goals", torch.tensor(goals), persistent=False)
        self.register_buffer("robots", torch.tensor(robots), persistent=False)
        self.activation = ACTIVATIONS[activation]()
        inputs = features - (robot_features or 0)
        hidden = [width] * (depth - 1)
        self.goal_modules = StackedMLP(max(goals) + 1, [inputs, *hidden, interface], activation, init)
        names = [name for name, _ in self.goal_modules.named_parameters(prefix="goal_modules")]
        self.task_axes: TaskAxes = {name: (0,) for name in names if goal_of_own}
        inputs = interface + (robot_features or features)
        self.robot_modules = StackedMLP(max(robots) + 1, [inputs, *hidden, width], activation, init)
        self.out_features = width

    goals: Tensor
    robots: Tensor

    def forward(self, features: Float[Tensor, "*batch F"], context: TaskContext) -> Float[Tensor, "*batch H"]:
        plan = select(self.goal_modules(features[..., self.goal_features]), self.goals[context.task])
        x = torch.cat([self.activation(plan), features[..., self.robot_features]], dim=-1)
        return self.activation(select(self.robot_modules(x), self.robots[context.task]))
