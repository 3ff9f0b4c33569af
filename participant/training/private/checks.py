"""Before private training: does the loss really decompose, and does the model keep nothing of what it saw?"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from core_model.tasks import LearningTask
from participant.training.private.engine import RecordGradients
from participant.training.private.population import Index, Population
from privacy.mechanisms.errors import PrivacyError

_TOLERANCE = 1e-6
_ROUNDING = 1e-5
_NORMS = 1e-4


def freeze_unused(model: nn.Module, task: LearningTask) -> int:
    """Freeze what the task's loss doesn't reach, such as the tower of a modality that the site hasn't; what is trained.

    Returns:
        Numbers that are trained, d.

    Raises:
        CoupledLossError: For a loss that compares records.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batch = task.sampled(np.arange(min(2, task.examples), dtype=np.int64), 0)
    with torch.random.fork_rng(devices=[]):
        gradients = torch.autograd.grad(task.record_losses(model, batch).sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def check_losses(losses: torch.Tensor, rows: int) -> None:
    """Refuse losses that aren't one number for each row of the batch.

    Raises:
        PrivacyError: "loss-shape".
    """
    if losses.shape != (rows,):
        raise PrivacyError(
            "loss-shape",
            f"the loss of {rows} records has the shape {list(losses.shape)}, not one value for each record",
            "Return a tensor of shape (batch,): for example reduction='none'.",
        )


def check_decomposes(model: nn.Module, task: LearningTask, gradients: RecordGradients, population: Population) -> None:
    """Test on some records that no owner's gradient depends on anybody else, and that the model keeps nothing of them.

    For two owners: (1) in training mode, with the same random numbers, replacing all others changes neither the
    owner's gradient nor what the engine clips; (2) without dropout and random changes to the data, nor does taking the
    others away, so that no loss depends on the size of its batch; (3) no tensor of the model is another afterwards.

    What it can't find is a coupling that shows for certain records only, or one through the module's own Python
    attributes.

    Args:
        model: Its mode and tensors are left as they were.
        task: The site's side of the task.
        gradients: The engine for that model.
        population: The task's.

    Raises:
        PrivacyError: "loss-coupled", "loss-shape", "model-state".
        CoupledLossError: The task says so itself.
    """
    cast = population.strangers()
    before = {name: tensor.clone() for name, tensor in _tensors(model)}
    training = model.training
    try:
        for number in range(min(2, len(cast))):
            owner = cast[number]
            others = cast[:number] + cast[number + 1 :]
            if len(others) >= 2:
                size = min(len(others[0]), len(others[1]))
                model.train()
                seed = int.from_bytes(os.urandom(4), "big")
                both = [np.concatenate([owner, other[:size]]) for other in others[:2]]
                one, two = (_Seen(model, task, gradients, population, owner, company, seed) for company in both)
                one.compare(two, "replacing other records of a batch")
            if others:
                model.eval()
                company = np.concatenate([owner, others[0]])
                alone, among = (_Seen(model, task, gradients, population, owner, c, None) for c in (owner, company))
                alone.compare(among, "adding records to a batch")
    finally:
        model.train(training)
    changed = [name for name, tensor in _tensors(model) if not torch.equal(tensor, before[name])]
    if changed:
        raise state_error(changed[0])


class _Seen:
    """An owner's gradient in a company: by autograd from its own losses, and its norm as the engine finds it."""

    def __init__(
        self,
        model: nn.Module,
        task: LearningTask,
        gradients: RecordGradients,
        population: Population,
        owner: Index,
        company: Index,
        seed: int | None,
    ) -> None:
        rows = len(owner) * task.views
        keys = population.owners(company)
        dense = np.arange(len(company)) if keys is None else np.unique(keys, return_inverse=True)[1]
        place = int(dense[0])
        with repeatable(seed or 0):
            batch = task.sampled(company, seed)
        with repeatable(seed or 0):
            losses = task.record_losses(model, batch)
            check_losses(losses, len(company) * task.views)
            found = torch.autograd.grad(losses[:rows].sum(), gradients.parameters, materialize_grads=True)
        self.gradient = torch.cat([part.reshape(-1) for part in found]).double()
        with repeatable(seed or 0):
            summed = gradients.clipped_sum(
                lambda: task.record_losses(model, batch),
                1.0,
                owners=torch.from_numpy(np.repeat(dense, task.views)),
            )
        self.norm = float(summed.norms[place])

    def compare(self, other: _Seen, what: str) -> None:
        """Raise "loss-coupled" unless both are the same, up to rounding."""
        largest = float(self.gradient.abs().max())
        moved = float((self.gradient - other.gradient).abs().max())
        length = float(self.gradient.norm())
        apart = max(abs(self.norm - length), abs(other.norm - length))
        if moved <= _TOLERANCE + _ROUNDING * largest and apart <= _TOLERANCE + _NORMS * length:
            return
        raise PrivacyError(
            "loss-coupled",
            f"{what} changes a record's gradient by {max(moved, apart):.3g} (of {length:.3g}): clipping wouldn't bound "
            "its influence",
            "Use a loss of each record alone: no batch statistics, no comparison within the batch, no division by the "
            "batch's size.",
        )


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Within it the model may compute, but not write into its own tensors.

    A tensor that forward passes change would carry what records told it past the noise, into the update and into the
    gradients of later steps.

    Raises:
        PrivacyError: "model-state".
    """
    versions = {name: tensor._version for name, tensor in _tensors(model)}
    yield
    changed = [name for name, tensor in _tensors(model) if tensor._version != versions.get(name)]
    if changed:
        raise state_error(changed[0])


def state_error(name: str) -> PrivacyError:
    """The error of a model whose forward passes write into a tensor."""
    return PrivacyError(
        "model-state",
        f'the model changes its tensor "{name}" while it computes: it would tell of records what no noise covers',
        "Leave out running statistics and other state that forward passes write; LayerNorm and GroupNorm have none.",
    )


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@contextlib.contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """All of Python's, numpy's and torch's common generators from a seed; as before afterwards."""
    state, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(state)
        np.random.set_state(legacy)
