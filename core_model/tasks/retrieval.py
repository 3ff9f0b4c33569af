"""Finding the picture that a text describes: pictures and captions aligned in one space."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from core_model.config import LearningConfig
from core_model.data.examples import DataSource, Examples
from core_model.data.public import emoji_captions
from core_model.encoder import MultimodalEncoder
from core_model.errors import DataError
from core_model.modalities import augment, hash_captions, outline, shrink, to_float
from core_model.objectives import bank_losses, contrastive_loss, group_losses, ranks, spread
from core_model.seeds import derive
from core_model.tasks.base import Evaluation, LearningTask, coupled, index_batches, seeded_build

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
_CHUNK = 256


class PairBatch(NamedTuple):
    """Pairs whose losses don't depend on the whole batch.

    Attributes:
        views: float [n, 3, s, s].
        captions: Hashed, one for each view, int64 [n, t, pieces].
        apart: What a row isn't told apart from. For negatives "bank" bool [n, m], own captions; for "group" bool
            [n, n], pairs of other groups and other views of the same pair.
        public: Hashed captions from the bank [m, t, pieces]; [0, t, pieces] for groups.
    """

    views: torch.Tensor
    captions: torch.Tensor
    apart: torch.Tensor
    public: torch.Tensor


class RetrievalTask(LearningTask):
    """Contrastive training of pictures against their captions.

    Scores, for each held-out set named s: ``s_r_at_1`` and ``s_r_at_10``, the share of captions whose own picture ranks
    first (among the first ten) of all pictures of that set; and ``loss``, the contrastive loss of the first set.
    """

    def __init__(self, config: LearningConfig, source: DataSource) -> None:
        self._config = config
        for part in (source.train, *source.evaluation.values()):
            if part.images is None or part.captions is None:
                raise DataError(f'Data source "{source.name}" has no {"pictures" if part.images is None else "texts"}.')
        if len(source.train) < 2:
            raise DataError(f'Data source "{source.name}" has fewer than two training pairs.')
        self.source = source
        assert source.train.images is not None
        self._pixels = shrink(source.train.images, config.model.image_size)
        self._hashed = [self._hash(texts) for texts in source.train.captions or ()]
        self._queries = {
            name: self._hash([texts[0] for texts in part.captions or ()]) for name, part in source.evaluation.items()
        }

    @property
    def examples(self) -> int:
        """Number of local training pairs."""
        return len(self.source.train)

    def build_model(self, seed: int) -> nn.Module:
        """A new encoder without a classification head."""
        build = functools.partial(MultimodalEncoder, self._config.model, self._config.task.temperature)
        return seeded_build(build, seed)

    def batches(self, seed: int, steps: int) -> Iterator[Batch | PairBatch]:
        """Yield (images, hashed captions, second view of the images or None); one caption of each example at random.

        Without negatives from the batch, yield what :meth:`sampled` gives.
        """
        task = self._config.task
        if task.negatives != "batch":
            for step, index in enumerate(index_batches(self.examples, self._config.training.batch_size, seed, steps)):
                yield self.sampled(index, derive(seed, "step", step))
            return
        generator = torch.Generator().manual_seed(seed)
        chooser = np.random.default_rng(derive(seed, "caption"))
        for index in index_batches(self.examples, self._config.training.batch_size, seed, steps):
            pixels = to_float(self._pixels[torch.from_numpy(index)], self._config.model.image_size)
            hashed = [self._hashed[i] for i in index.tolist()]
            chosen = torch.stack([texts[int(chooser.integers(len(texts)))] for texts in hashed])
            views = [
                augment(outline(pixels, task.outlines, generator), task.augment, generator)
                for _ in range(2 if task.image_image else 1)
            ]
            yield views[0], chosen, views[1] if task.image_image else None

    @property
    def persons(self) -> npt.NDArray[np.int64] | None:
        """As the data source knows them."""
        found = self.source.train.persons
        return None if found is None else found.numpy()

    @property
    def views(self) -> int:
        """As configured."""
        return self._config.task.views

    @property
    def group_count(self) -> int | None:
        """As many groups as have ``group_size`` pairs of a batch each, on average."""
        task = self._config.task
        if task.negatives != "group":
            return None
        return max(1, round(min(self._config.training.batch_size, self.examples) / task.group_size))

    def groups(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """By a hash of the pair itself, picture and captions; where persons are known, of its person."""
        count = self.group_count
        assert count is not None
        return np.array([derive("group", key) % count for key in self._identities[index].tolist()], np.int64)

    def sampled(self, index: npt.NDArray[np.int64], seed: int | None) -> PairBatch:
        """Views and captions of these pairs, and what they are told apart from."""
        task = self._config.task
        rows = np.repeat(index, self.views)
        pixels = to_float(self._pixels[torch.from_numpy(rows)], self._config.model.image_size)
        hashed = [self._hashed[i] for i in rows.tolist()]
        if seed is None:
            chosen, views = torch.stack([texts[0] for texts in hashed]), pixels
        else:
            chooser = np.random.default_rng(derive(seed, "caption"))
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.stack([texts[int(chooser.integers(len(texts)))] for texts in hashed])
            views = augment(outline(pixels, task.outlines, generator), task.augment, generator)
        if task.negatives == "group":
            groups = torch.from_numpy(np.repeat(self.groups(index), self.views))
            pair = torch.arange(len(index)).repeat_interleave(self.views)
            same = (pair[:, None] == pair) & ~torch.eye(len(rows), dtype=torch.bool)
            return PairBatch(views, chosen, (groups[:, None] != groups) | same, chosen[:0])
        drawn = self._drawn(seed or 0)
        own = torch.stack([torch.isin(self._bank_keys[drawn], _keys(texts)) for texts in hashed])
        return PairBatch(views, chosen, own, self._bank[drawn])

    def record_losses(self, model: nn.Module, batch: PairBatch) -> torch.Tensor:
        """Each pair against public captions, or the pairs of each group among themselves.

        Raises:
            CoupledLossError: The negatives are the rest of the batch.
        """
        if self._config.task.negatives == "batch":
            raise coupled(self)
        with torch.no_grad():
            public = self._embed_public(model, batch.public)
        return self._losses(model, batch, public)

    def public_loss(self, model: nn.Module, seed: int) -> torch.Tensor | None:
        """For negatives "bank": how close together public captions lie."""
        if self._config.task.negatives != "bank":
            return None
        return spread(self._embed_public(model, self._bank[self._drawn(seed)]))

    def _losses(self, model: nn.Module, batch: PairBatch, public: torch.Tensor) -> torch.Tensor:
        assert isinstance(model, MultimodalEncoder)
        images, texts = model.embed_images(batch.views), model.embed_texts(batch.captions)
        scale = model.scale(len(images))
        if self._config.task.negatives == "group":
            return group_losses(images, texts, batch.apart, scale) / self.views
        return bank_losses(images, texts, public, batch.apart, scale) / self.views

    def _drawn(self, seed: int) -> torch.Tensor:
        """Captions of the bank for a step, in ascending order."""
        count = min(self._config.task.bank_size, len(self._bank))
        generator = torch.Generator().manual_seed(derive(seed, "bank"))
        return torch.randperm(len(self._bank), generator=generator)[:count].sort().values

    def _embed_public(self, model: nn.Module, hashed: torch.Tensor) -> torch.Tensor:
        assert isinstance(model, MultimodalEncoder)
        if not len(hashed):
            return torch.zeros(0, self._config.model.embedding)
        return model.embed_texts(hashed)

    @functools.cached_property
    def _identities(self) -> npt.NDArray[np.int64]:
        """A number for each pair that follows from it, or from its person, alone."""
        if self.persons is not None:
            return self.persons
        found = []
        for pixels, texts in zip(self._pixels, self._hashed, strict=True):
            digest = hashlib.sha256(pixels.numpy().tobytes() + texts.numpy().tobytes()).digest()
            found.append(int.from_bytes(digest[:8], "little") >> 1)
        return np.array(found, np.int64)

    @functools.cached_property
    def _bank(self) -> torch.Tensor:
        """The hashed public captions [all, t, pieces]."""
        return self._hash(self._config.task.bank or emoji_captions())

    @functools.cached_property
    def _bank_keys(self) -> torch.Tensor:
        return _keys(self._bank)

    def loss(self, model: nn.Module, batch: Batch | PairBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """Image-text InfoNCE, plus the weighted loss between two views where that is switched on.

        Without negatives from the batch, the mean of :meth:`record_losses` plus :meth:`public_loss`.
        """
        assert isinstance(model, MultimodalEncoder)
        if isinstance(batch, PairBatch):
            public = self._embed_public(model, batch.public)
            matching = self._losses(model, batch, public.detach()).mean() * self.views
            return matching + spread(public) if len(public) else matching, {"image_text_loss": matching.item()}
        first, hashed, second = batch
        texts = model.embed_texts(hashed)
        if second is None:
            return contrastive_loss(model.embed_images(first), texts, model.scale()), {}
        one, other = model.embed_images(torch.cat((first, second))).chunk(2)
        scale = model.scale()
        pairs = (contrastive_loss(one, texts, scale) + contrastive_loss(other, texts, scale)) / 2
        views = contrastive_loss(one, other, scale)
        return pairs + self._config.task.image_image * views, {"image_text_loss": pairs.item()}

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Text-to-image retrieval within each held-out set."""
        metrics: dict[str, float] = {}
        scored = 0
        for name, part in self.source.evaluation.items():
            if not len(part):
                continue
            images, texts = self.embed(model, part, self._queries[name])
            rank = ranks(texts, images)
            metrics[f"{name}_r_at_1"] = (rank <= 1).float().mean().item()
            metrics[f"{name}_r_at_10"] = (rank <= 10).float().mean().item()
            if "loss" not in metrics:
                assert isinstance(model, MultimodalEncoder)
                metrics["loss"] = contrastive_loss(images, texts, model.scale().detach()).item()
            scored += len(part)
        return Evaluation(metrics, scored)

    def embed(self, model: nn.Module, part: Examples, hashed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Representations [n, embedding] of the pictures and of hashed captions, without gradients."""
        assert isinstance(model, MultimodalEncoder) and part.images is not None
        training = model.training
        model.eval()
        with torch.no_grad():
            images = torch.cat([model.embed_images(chunk) for chunk in torch.split(part.images, _CHUNK)])
            texts = torch.cat([model.embed_texts(chunk) for chunk in torch.split(hashed, _CHUNK)])
        model.train(training)
        return images, texts

    def queries(self, name: str) -> torch.Tensor:
        """Hashed first captions [n, t, pieces] of a held-out set."""
        return self._queries[name]

    def _hash(self, texts: Sequence[str]) -> torch.Tensor:
        return hash_captions(texts, self._config.model.text_buckets, self._config.model.text_tokens)


def _keys(hashed: torch.Tensor) -> torch.Tensor:
    """One number for each hashed caption [n, t, pieces]: equal captions have equal ones."""
    flat = hashed.flatten(1)
    # Odd multipliers (of Knuth's multiplicative hash); sums wrap mod 2^64.
    factors = torch.arange(1, 2 * flat.shape[1], 2, dtype=torch.int64) * 2654435761
    return (flat * factors).sum(1)
