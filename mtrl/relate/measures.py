"""Measures of how alike tasks are, from trained policies. Registered under the kind "relation"."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mtrl.nn.networks import PolicyNetwork
from mtrl.registry import register
from mtrl.relate.probe import Probe
from mtrl.relate.similarity import attribution_similarity, cosine, linear_cka, low_rank, rsa
from mtrl.run.logger import read_rows
from mtrl.types import UserError

MIXTURE = re.compile(r"(stem_)?(routing|expert_weight|set_weight)(_\d+)+")
"""Diagnostics of trunks that say how much of a module a task uses."""


@dataclass(frozen=True)
class Relation:
    """A measure of K tasks."""

    matrix: Float[Tensor, "K K"]
    layers: dict[str, Float[Tensor, "K K"]] = field(default_factory=dict)
    """The same of each layer of the trunk; the matrix is that of its output."""
    halves: tuple[Float[Tensor, "K K"], ...] = ()
    """The same from every other row of the log, and from the rows between. NaN where they do not tell."""


@register("relation", "cka")
def of_cka(probe: Probe) -> Relation:
    """Linear centred kernel alignment of features, by layer (`linear_cka`)."""
    layers = {name: linear_cka(features) for name, features in probe.layers().items()}
    return Relation(layers["output"], layers)


@register("relation", "rsa")
def of_rsa(probe: Probe) -> Relation:
    """Similarity of the dissimilarities of observations, by layer (`rsa`)."""
    layers = {name: rsa(features) for name, features in probe.layers().items()}
    return Relation(layers["output"], layers)


@register("relation", "attribution")
def of_attribution(probe: Probe) -> Relation:
    """Cosine of input gradients (`attribution_similarity`)."""
    return Relation(attribution_similarity(probe.input_gradients()))


@register("relation", "embedding")
def of_embedding(probe: Probe) -> Relation:
    """Cosine of what a network has learned to know of each task.

    That is the vectors of its task encoder; with one-hot tasks, the columns of the layers that read them.
    """
    network = _only(probe, "embedding")
    encoder, ids = network.task_encoder, list(probe.ids)
    if encoder.history_size:
        raise UserError("relation embedding: this policy infers the task, and has no vector for it.")
    if not encoder.one_hot:
        task = torch.tensor(ids, device=probe.task.device)
        with torch.no_grad():
            return Relation(cosine(encoder(task, torch.empty(len(ids), 0, device=task.device)).embedding).cpu())
    weights = [network.get_parameter(name).detach() for name in network.task_axes]
    if not weights:
        raise UserError("relation embedding: no layer of this policy reads an embedding of the task.")
    return Relation(cosine(torch.cat(weights)[:, ids].T).cpu())


@register("relation", "heads")
def of_heads(probe: Probe) -> Relation:
    """Cosine of the weights of the tasks' heads."""
    return Relation(cosine(_heads(probe, "heads")).cpu())


@register("relation", "heads_low_rank")
def of_heads_low_rank(probe: Probe) -> Relation:
    """The same in the few directions in which heads mostly differ, from their mean (`low_rank`)."""
    return Relation(cosine(low_rank(_heads(probe, "heads_low_rank"))).cpu())


def _heads(probe: Probe, measure: str) -> Float[Tensor, "K P"]:
    weight = dict(_only(probe, measure).head.named_parameters()).get("head.weight")
    if weight is None or weight.ndim != 3:
        raise UserError(f"relation {measure}: this policy has one head for all tasks (network.head=shared).")
    return weight.detach()[list(probe.ids)].flatten(1)


@register("relation", "routing")
def of_routing(probe: Probe) -> Relation:
    """Cosine of how much tasks use each module, expert or set of parameters of a trunk."""
    _only(probe, "routing")
    used = [value for name, value in probe.diagnostics().items() if MIXTURE.fullmatch(name)]
    if not used:
        raise UserError("relation routing: the trunk of this policy mixes no modules.")
    return Relation(cosine(torch.stack(used, 1)).cpu())


@register("relation", "gradient")
def of_gradient(probe: Probe) -> Relation:
    """Cosine of the gradients of two tasks in the parameters that they share, as the mean over training."""
    hint = "Train with an aggregation that looks at gradients, such as aggregation=measured_mean."
    cosines, *halves = _logged(probe, "gradient", ("grad/policy_cosine", "grad/joint_cosine"), hint)
    return Relation(cosines, halves=tuple(halves))


@register("relation", "lookahead")
def of_lookahead(probe: Probe) -> Relation:
    """What a step on the task of the row gains in that of the column, as a share of what a step of its own gains.

    A gain is the decrease of the policy's loss (`mtrl.optim.lookahead`), as the mean over training.
    """
    gain, *halves = _logged(probe, "lookahead", ("grad/lookahead",), "Train with log.lookahead=true.")
    by_itself = gain.diagonal()
    if (by_itself <= 0).any():
        names = ", ".join(name for name, lost in zip(probe.tasks, by_itself <= 0, strict=True) if lost)
        raise UserError(f"relation lookahead: on average, steps on the loss of {names} did not lower it in this run.")
    return Relation(gain / by_itself, halves=tuple(half / half.diagonal() for half in halves))


def _logged(probe: Probe, measure: str, keys: tuple[str, ...], hint: str) -> list[Float[Tensor, "K K"]]:
    """The mean of a matrix over the log of the run, and if it has several rows, over every other one and the rest.

    Raises:
        UserError: It is not there.
    """
    _only(probe, measure)
    if probe.run is None:
        raise UserError(f"relation {measure}: it is in the log of a run, and this policy has none here.")
    rows = read_rows(probe.run / "metrics.jsonl")
    logged = [row[key] for row in rows for key in keys if key in row]
    if not logged:
        raise UserError(f"relation {measure}: there is no {keys[0]} in {probe.run / 'metrics.jsonl'}. {hint}")
    every = torch.from_numpy(np.array(logged, dtype=float))[:, list(probe.ids)][:, :, list(probe.ids)]
    matrix, *halves = (some.nanmean(0) for some in (every, every[::2], every[1::2]) if len(some))
    if matrix.isnan().any():
        raise UserError(f"relation {measure}: a task of this run never had a gradient.")
    return [matrix, *halves]


def _only(probe: Probe, measure: str) -> PolicyNetwork:
    """The network of all tasks. Raises `UserError` if there are several."""
    if any(network is not probe.networks[0] for network in probe.networks):
        raise UserError(f"relation {measure}: it compares tasks within a single policy, and several are given.")
    return probe.networks[0]
