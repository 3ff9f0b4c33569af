"""What is made of noisy gradients: Adam that knows how much of its second moment is noise, and averages of weights.

Both see nothing but released gradients and public numbers, so they are post-processing.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from privacy.mechanisms.errors import PrivacyError


class DPAdamBC(torch.optim.Optimizer):
    """AdamW with the noise's share taken out of its second moment (Tang et al. 2023, arXiv 2312.14334).

    Noise of standard deviation s in a gradient adds s^2 to the expected square of each coordinate. Adam then divides
    all coordinates by about the same number, and is little more than momentum. Here the second moment is
    ``max(v - phi, floor)`` with phi the mean of s^2 under the very weights with which v averages, so that noise that
    changes from step to step is taken out as it was put in.

    Before each step, give the noise's standard deviation *in the gradient as the optimizer sees it* (the sum's, over
    the number that the sum is divided by) to ``group["noise_std"]`` of each group, as one does with the learning rate.

    Formal Guarantees:
        Post-processing: it uses noisy gradients and public settings.

    Args:
        parameters: As of any optimizer.
        lr: Step size.
        betas: Decay of first and second moment.
        floor: Smallest second moment, > 0. Where the noise dwarfs the gradient it decides about the step: coordinates
            at the floor move by ``lr * m / sqrt(floor)``.
        weight_decay: Decoupled from the gradient (Loshchilov and Hutter 2019).

    Raises:
        PrivacyError: "optimizer-invalid".

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = DPAdamBC([weight], lr=0.1, floor=1e-4)
        >>> optimizer.param_groups[0]["noise_std"] = 0.5
        >>> weight.grad = torch.tensor([1.0, -1.0, 1.0])
        >>> _ = optimizer.step()
        >>> [round(value, 3) for value in weight.tolist()]
        [0.885, 1.115, 0.885]
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        floor: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not (lr >= 0 and weight_decay >= 0 and floor > 0 and all(0 <= beta < 1 for beta in betas)):
            raise PrivacyError(
                "optimizer-invalid",
                f"DP-AdamBC has lr {lr:g}, betas {betas}, floor {floor:g} and weight decay {weight_decay:g}",
                "lr and weight decay are at least 0, betas in [0, 1), the floor above 0.",
            )
        defaults = {"lr": lr, "betas": betas, "floor": floor, "weight_decay": weight_decay, "noise_std": 0.0}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step.

        Args:
            closure: Computes the gradients again, as torch allows.

        Raises:
            PrivacyError: "optimizer-invalid" for a standard deviation of the noise that isn't a number of at least 0.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            std = float(group["noise_std"])
            if not (math.isfinite(std) and std >= 0):
                raise PrivacyError("optimizer-invalid", f"the noise's standard deviation is {std:g}")
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group, std)
        return loss

    def _move(self, parameter: torch.Tensor, group: dict[str, Any], std: float) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state.update(step=0, noise=0.0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        first, second = group["betas"]
        state["step"] += 1
        state["noise"] = second * state["noise"] + (1 - second) * std**2
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        correction = 1 - second ** state["step"]
        root = (state["square"] - state["noise"]).div_(correction).clamp_(min=group["floor"]).sqrt_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(state["mean"], root, value=-group["lr"] / (1 - first ** state["step"]))


class WeightAverage:
    """A moving average of a model's weights over the steps (De et al. 2022, 2204.13650): single steps' noise fades.

    The decay grows with the steps, ``min(decay, (1 + t) / (10 + t))``, so that the start doesn't stay in it.

    Formal Guarantees:
        Post-processing of the weights after each step.

    Args:
        parameters: That are averaged; their values now are the average's start.
        decay: Weight of the average at a step, in [0, 1).

    Raises:
        PrivacyError: "optimizer-invalid".
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise PrivacyError("optimizer-invalid", f"the decay of averaged weights is {decay:g}, not in [0, 1)")
        self.steps = 0
        self._decay = decay
        self._parameters = list(parameters)
        self._values = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in; call it after each step."""
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self._values, self._parameters, 1 - decay)  # type: ignore[arg-type]

    @torch.no_grad()
    def store(self) -> None:
        """Make the average the model's weights."""
        torch._foreach_copy_(self._parameters, self._values)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model has the average as its weights, for example to score it; afterwards its own again."""
        own = [parameter.detach().clone() for parameter in self._parameters]
        self.store()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._parameters, own)  # type: ignore[arg-type]
