"""What record-level privacy costs: steps beside non-private ones and Opacus's, memory, noise, and accounting.

All modes of a case run interleaved in one process with one thread, so that a busy machine slows all of them; ratios are
medians over repetitions of a mode's processor time to the non-private step's next to it. Peak memory is the growth of
the resident set in a process of its own for each mode.

``python -m benchmarks.private_training [--quick] [--json PATH]``
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import logging
import math
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.private_accounting import FULL, QUICK, cost_rows, epsilon_rows
from benchmarks.report import Report, Row
from core_model.config import ModelConfig
from core_model.encoder import Block, MultimodalEncoder
from core_model.modalities import hash_captions
from participant.training.private import RecordGradients
from privacy.mechanisms.clipping import ClippingRule
from privacy.mechanisms.lattice import Lattice
from privacy.mechanisms.noise import NoiseKey

WIDTH: Final = 256
TOKENS: Final = 64
BATCH: Final = 64
CLIP: Final = 1.0
STEP_TARGET: Final = 1.30
SHARED_TARGET: Final = 1.35
MEMORY_TARGET: Final = 1.35
NOISE_TARGET: Final = 0.05
EXACT_TARGET: Final = 1e-5

MODES: Final = ("non-private", "book-keeping", "opacus-hooks", "opacus-ghost")
BY_LAYER: Final = "book-keeping-by-layer"
"""Each layer clipped to its share of the norm: its gradients are needed no longer than the backward pass is at it."""

STEADY: Final = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
"""Has glibc give every large tensor pages of its own, so that holes between tensors count for nothing."""

Step = Callable[[], object]


class Transformer(nn.Module):
    """Four blocks of the product's encoder on token ids, classified from the tokens' mean: 3.69 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(2000, WIDTH)
        self.positions = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(Block(WIDTH, 8) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [n, 10] of ids [n, TOKENS]."""
        places = torch.arange(TOKENS).repeat(len(ids), 1)
        x = self.tokens(ids) + self.positions(places)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x.mean(1)))
        return logits


@dataclasses.dataclass(frozen=True)
class Work:
    """A model, its optimizer, and the losses of one batch."""

    model: nn.Module
    forward: Callable[[nn.Module], torch.Tensor]
    target: torch.Tensor

    def losses(self) -> torch.Tensor:
        """One loss for each record, [B]."""
        return F.cross_entropy(self.forward(self.model), self.target, reduction="none")


def transformer(batch: int = BATCH) -> Work:
    """The transformer of the peers' comparison."""
    torch.manual_seed(0)
    ids, target = torch.randint(0, 2000, (batch, TOKENS)), torch.randint(0, 10, (batch,))
    return Work(Transformer(), lambda model: model(ids), target)


def shared(batch: int = BATCH) -> Work:
    """The product's encoder: pictures and texts pass through the same blocks in one forward."""
    torch.manual_seed(0)
    config = ModelConfig(classes=10, width=WIDTH, depth=4, heads=8, image_size=64, text_tokens=16)
    captions = [" ".join(f"word{(7 * i + 3 * j) % 50}" for j in range(4 + i % 12)) for i in range(batch)]
    images = torch.rand(batch, 3, 64, 64) * 2 - 1
    hashed, target = hash_captions(captions, config.text_buckets, 16), torch.randint(0, 10, (batch,))

    def forward(model: nn.Module) -> torch.Tensor:
        assert isinstance(model, MultimodalEncoder)
        return model.classify(images, hashed)

    return Work(MultimodalEncoder(config), forward, target)


def plain_step(work: Work) -> Step:
    """A step of SGD without privacy."""
    optimizer = torch.optim.SGD(work.model.parameters(), lr=1e-3)

    def step() -> None:
        work.losses().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def private_step(work: Work, *, by_layer: bool = False) -> Step:
    """The same step with clipped gradients; without noise, which has a row of its own."""
    optimizer = torch.optim.SGD(work.model.parameters(), lr=1e-3)
    engine = RecordGradients(work.model)
    if by_layer:
        engine = RecordGradients(work.model, rule=ClippingRule.layers(len(engine.layers)))

    def step() -> None:
        total = engine.clipped_sum(work.losses, CLIP).total
        for parameter, gradient in zip(engine.parameters, total, strict=True):
            parameter.grad = gradient.div_(len(work.target))
        optimizer.step()
        optimizer.zero_grad()

    return step


def opacus_step(work: Work, ghost: bool) -> Step:
    """The step by Opacus's optimizer and hooks, or by its ghost clipping, with a noise multiplier of 0."""
    logging.getLogger("opacus").setLevel(logging.ERROR)
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers.optimizer import DPOptimizer
    from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    optimizer = torch.optim.SGD(work.model.parameters(), lr=1e-3)
    settings: dict[str, Any] = {
        "noise_multiplier": 0.0,
        "max_grad_norm": CLIP,
        "expected_batch_size": len(work.target),
        "loss_reduction": "mean",
    }
    if not ghost:
        hooked = GradSampleModule(work.model)
        private = DPOptimizer(optimizer, **settings)

        def step() -> None:
            F.cross_entropy(work.forward(hooked), work.target).backward()  # type: ignore[no-untyped-call]
            private.step()
            private.zero_grad()

        return step
    fast = GradSampleModuleFastGradientClipping(work.model, max_grad_norm=CLIP, use_ghost_clipping=True)
    fast_private = DPOptimizerFastGradientClipping(optimizer, **settings)
    criterion = DPLossFastGradientClipping(fast, fast_private, nn.CrossEntropyLoss(), loss_reduction="mean")

    def ghost_step() -> None:
        criterion(work.forward(fast), work.target).backward()
        fast_private.step()
        fast_private.zero_grad()

    return ghost_step


def make_step(mode: str, work: Work) -> Step:
    """A step in one of :data:`MODES`, or :data:`BY_LAYER`."""
    if mode == "non-private":
        return plain_step(work)
    if mode in ("book-keeping", BY_LAYER):
        return private_step(work, by_layer=mode == BY_LAYER)
    return opacus_step(work, mode == "opacus-ghost")


def interleaved(steps: Sequence[Step], repeats: int) -> list[list[float]]:
    """Processor seconds of each step, [steps][repeats], after one that doesn't count."""
    for step in steps:
        step()
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats):
        for step, found in zip(steps, times, strict=True):
            started = time.process_time()
            step()
            found.append(time.process_time() - started)
    return times


def ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """The median of ratios of neighbours."""
    return statistics.median(mine / other for mine, other in zip(times, base, strict=True))


def step_rows(report: Report, repeats: int, peers: Sequence[str]) -> None:
    """The private step beside the non-private one and Opacus's, on the transformer."""
    case = f"4-layer transformer, d {WIDTH}, {TOKENS} tokens, batch {BATCH}"
    modes = ("non-private", "book-keeping", *peers)
    times = dict(zip(modes, interleaved([make_step(mode, transformer()) for mode in modes], repeats), strict=True))
    base = times["non-private"]
    ours = ratio(times["book-keeping"], base)
    report.add(Row(case=case, metric="non-private step", value=min(base), unit="s", better="lower"))
    best = min(peers, key=lambda mode: ratio(times[mode], base), default=None)
    report.add(
        Row(
            case=case,
            metric="private / non-private step",
            value=ours,
            unit="x",
            better="lower",
            target=STEP_TARGET,
            peer=peer_name(best) if best else None,
            ratio=ratio(times[best], base) / ours if best else None,
        )
    )
    for mode in peers:
        report.add(
            Row(
                case=case, metric=f"{mode} / non-private step", value=ratio(times[mode], base), unit="x", better="lower"
            )
        )


def shared_rows(report: Report, repeats: int) -> None:
    """The product's encoder with two modalities: the step's cost, and the error of norms and sum."""
    case = f"shared encoder, two modalities, batch {BATCH}"
    plain, private = interleaved([plain_step(shared()), private_step(shared())], repeats)
    report.add(
        Row(
            case=case,
            metric="private / non-private step",
            value=ratio(private, plain),
            unit="x",
            better="lower",
            target=SHARED_TARGET,
        )
    )
    report.add(
        Row(
            case=f"{case.rpartition(',')[0]}, 6 records",
            metric="largest relative error of a norm",
            value=shared_error(shared(6)),
            unit="",
            better="lower",
            target=EXACT_TARGET,
        )
    )


def shared_error(work: Work) -> float:
    """The largest relative error of the engine's norms against gradients taken record by record."""
    engine = RecordGradients(work.model)
    found = engine.clipped_sum(work.losses, CLIP).norms.double()
    errors: list[float] = []
    for record, norm in enumerate(found.tolist()):
        gradients = torch.autograd.grad(work.losses()[record], engine.parameters)
        exact = math.sqrt(sum(float(part.double().square().sum()) for part in gradients))
        errors.append(abs(norm / exact - 1))
    return max(errors)


def noise_rows(report: Report, repeats: int) -> None:
    """Cryptographic noise on the lattice, as a share of a private step of 256 records (in chunks of 64)."""
    step = private_step(transformer())
    model = transformer().model
    dimension = sum(parameter.numel() for parameter in model.parameters())
    lattice = Lattice.for_clip(CLIP, dimension)
    total = torch.zeros(dimension).numpy()
    sigma = 1.0 * lattice.sensitivity(CLIP)

    def noise() -> None:
        lattice.values(lattice.release(total, sigma, NoiseKey.fresh()))

    steps, noises = interleaved([step, noise], repeats)
    share = statistics.median(n / (4 * s + n) for s, n in zip(steps, noises, strict=True))
    report.add(
        Row(
            case=f"{dimension / 1e6:.2f} M parameters, batch 256",
            metric="noise, of a step",
            value=share,
            unit="",
            better="lower",
            target=NOISE_TARGET,
        )
    )


def peak_mb(mode: str, steps: int = 3) -> float:
    """Growth of the resident set's peak over some steps in a mode, in MB; run it in a process of its own."""

    def status(name: str) -> float:
        found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    step = make_step(mode, transformer())
    before = status("VmRSS")
    for _ in range(steps):
        step()
    return status("VmHWM") - before


def _peak_of(mode: str, settings: Mapping[str, str]) -> float:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.private_training", "--peak-of", mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **settings})
    return float(done.stdout.split()[-1])


def peaks(modes: Sequence[str], repeats: int, settings: Mapping[str, str]) -> dict[str, float]:
    """Peak memory of each mode in MB, the median of some processes with these settings in their environment."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        work = functools.partial(_peak_of, settings=settings)
        runs = list(pool.map(work, [mode for mode in modes for _ in range(repeats)]))
    return {mode: statistics.median(runs[i * repeats : (i + 1) * repeats]) for i, mode in enumerate(modes)}


def memory_rows(report: Report, repeats: int, peers: Sequence[str]) -> None:
    """Peak memory of each mode under the system's own settings, which leave holes between tensors."""
    found = peaks(("non-private", "book-keeping", *peers), repeats, {})
    base, case = found["non-private"], f"4-layer transformer, batch {BATCH}"
    best = min(peers, key=lambda mode: found[mode], default=None)
    report.add(Row(case=case, metric="non-private peak memory", value=base, unit="MB", better="lower"))
    report.add(
        Row(
            case=case,
            metric="private / non-private peak memory",
            value=found["book-keeping"] / base,
            unit="x",
            better="lower",
            target=MEMORY_TARGET,
            peer=peer_name(best) if best else None,
            ratio=found[best] / found["book-keeping"] if best else None,
        )
    )
    for mode in peers:
        report.add(
            Row(
                case=case,
                metric=f"{mode} / non-private peak memory",
                value=found[mode] / base,
                unit="x",
                better="lower",
            )
        )


def further_memory_rows(report: Report, repeats: int) -> None:
    """Peak memory with each layer clipped by itself, and of either clipping without the holes between tensors."""
    modes = ("non-private", "book-keeping", BY_LAYER)
    usual, steady = peaks((modes[0], BY_LAYER), repeats, {}), peaks(modes, repeats, STEADY)
    for found, mode, text in (
        (usual, BY_LAYER, "clipped by layer / non-private peak memory"),
        (steady, "book-keeping", "private / non-private peak memory without fragmentation"),
        (steady, BY_LAYER, "clipped by layer / non-private peak memory without fragmentation"),
    ):
        value = found[mode] / found["non-private"]
        report.add(Row(case=f"4-layer transformer, batch {BATCH}", metric=text, value=value, unit="x", better="lower"))


def peer_name(mode: str) -> str:
    """The peer with its version."""
    return f"{mode} {importlib.metadata.version('opacus')}"


def peers_here() -> list[str]:
    """Opacus's modes, where Opacus is installed."""
    try:
        importlib.metadata.version("opacus")
    except importlib.metadata.PackageNotFoundError:
        return []
    return [mode for mode in MODES if mode.startswith("opacus")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="benchmarks.private_training", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; under 60 s on two cores")
    parser.add_argument("--json", type=Path, help="write the report here, too")
    parser.add_argument(
        "--peak-of", choices=(*MODES, BY_LAYER), help="print one mode's peak memory in MB and nothing else"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # Opacus wants it so.
    if options.peak_of:
        print(peak_mb(options.peak_of))
        return
    repeats = 2 if options.quick else 15
    report = Report("private_training")
    step_rows(report, repeats, peers_here())
    shared_rows(report, repeats)
    # Each mode's memory needs a process of its own, so the quick run leaves the peers out.
    memory_rows(report, 1 if options.quick else 7, [] if options.quick else peers_here())
    if not options.quick:
        further_memory_rows(report, 3)
    noise_rows(report, repeats)
    epsilon_rows(
        report,
        QUICK if options.quick else FULL,
        f"Opacus {importlib.metadata.version('opacus')}" if peers_here() else None,
    )
    cost_rows(report, 3 if options.quick else 100)
    report.finish(options.json)


if __name__ == "__main__":
    main()
