"""Modalities, shared blocks, and the model around them."""

import pytest
import torch

from core_model import Manifest, ModelConfig
from core_model.encoder import Block, MultimodalEncoder
from core_model.modalities import augment, hash_captions, outline, shrink, to_float
from core_model.modalities.text import PIECES, pieces, words

SMALL = ModelConfig(image_size=16, width=16, heads=2, depth=2, embedding=8, text_buckets=64, text_tokens=5)


def test_words_are_normalised_and_pieces_are_bounded():
    assert words("Café_\N{FULLWIDTH LATIN CAPITAL LETTER A}bc, o'clock!") == ["café", "abc", "o", "clock"]
    assert pieces("cat")[:3] == ["=cat", "<ca", "cat"]
    assert len(pieces("incomprehensibilities")) == PIECES


def test_hashes_are_the_same_everywhere_and_within_range():
    hashed = hash_captions(["red car", "", "one two three four five six"], 64, 5)
    assert hashed.shape == (3, 5, PIECES) and hashed.max() <= 64
    assert (hashed[:, :, 0] != 0).sum(1).tolist() == [2, 1, 5]
    assert torch.equal(hash_captions(["red"], 64, 5)[0, 0], hashed[0, 0])


def test_a_block_ignores_masked_tokens():
    block = Block(16, 2)
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    changed = tokens.clone()
    changed[:, 3:] = 9.0
    assert torch.allclose(block(tokens, mask)[:, :3], block(changed, mask)[:, :3])
    assert not torch.allclose(block(tokens)[:, :3], block(changed)[:, :3])


def test_representations_are_unit_vectors_and_do_not_depend_on_the_batch():
    model = MultimodalEncoder(SMALL)
    hashed = hash_captions(["red car", "a very long line of words that is cut", "x"], 64, 5)
    images = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for vectors, alone in (
        (model.embed_texts(hashed), model.embed_texts(hashed[:1])),
        (model.embed_images(images), model.embed_images(images[:1])),
    ):
        assert vectors.shape == (3, 8)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
        torch.testing.assert_close(vectors[:1], alone)


def test_both_modalities_pass_through_the_same_blocks():
    model = MultimodalEncoder(SMALL)
    for embed in (
        lambda: model.embed_texts(hash_captions(["a"], 64, 5)),
        lambda: model.embed_images(torch.zeros(1, 3, 16, 16)),
    ):
        model.zero_grad()
        embed().sum().backward()
        assert all(parameter.grad is not None for parameter in model.blocks.parameters())


def test_classification_weighs_modalities():
    model = MultimodalEncoder(SMALL.model_copy(update={"classes": 3}))
    images, hashed = torch.rand(2, 3, 16, 16), hash_captions(["a", "b"], 64, 5)
    both = model.classify(images, hashed)
    assert both.shape == (2, 3)
    with torch.no_grad():
        model.modality_weights.copy_(torch.tensor([50.0, -50.0]))
    torch.testing.assert_close(model.classify(images, hashed), model.classify(images, None))
    both.sum().backward()
    assert model.modality_weights.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="no temperature"):
        model.scale()
    with pytest.raises(ValueError, match="classes = 0"):
        MultimodalEncoder(SMALL).classify(images, None)


def test_temperature_is_bounded():
    model = MultimodalEncoder(SMALL, temperature=0.05)
    assert model.scale().item() == pytest.approx(20)
    with torch.no_grad():
        model.log_scale.fill_(50)
    assert model.scale().item() == 100


def test_only_layers_that_keep_records_apart():
    kinds = {type(module).__name__ for module in MultimodalEncoder(SMALL).modules()}
    assert {"LayerNorm", "GroupNorm"} <= kinds and not any("BatchNorm" in kind for kind in kinds)


def test_pictures_reach_the_model_in_range():
    grey = torch.tensor([[[[0, 255]]]], dtype=torch.uint8).expand(1, 1, 8, 2)
    pixels = to_float(grey, 16)
    assert pixels.shape == (1, 3, 16, 16) and pixels.min() >= -1.01 and pixels.max() <= 1.01
    assert shrink(grey, 4).shape == (1, 1, 4, 4) and shrink(grey, 4).dtype == torch.uint8
    square = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert shrink(square, 4) is square


def test_random_changes_follow_the_seed_and_the_strength():
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def changed(strength, seed):
        return augment(images, strength, torch.Generator().manual_seed(seed))

    assert changed(0.0, 0) is images
    assert torch.equal(changed(0.5, 3), changed(0.5, 3)) and not torch.equal(changed(0.5, 3), changed(0.5, 4))
    assert (changed(0.1, 0) - images).abs().mean() < (changed(1.0, 0) - images).abs().mean()
    assert changed(1.0, 0).isfinite().all()


def test_outlines_forget_colour_and_keep_edges():
    images = torch.full((40, 3, 16, 16), -1.0)
    images[:, 0, :, 8:] = 1.0  # Black on the left, red on the right: one edge.
    drawn = outline(images, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, 0], drawn[:, 1]) and torch.equal(drawn[:, 0], drawn[:, 2])
    assert (drawn[:, :, :, 7] == -1).all() and (drawn[:, :, :, [*range(7), *range(8, 16)]] == 1).all()
    assert outline(images, 0.0, torch.Generator()) is images


def test_a_share_of_pictures_is_outlined():
    images = torch.rand(400, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    drawn = outline(images, 0.25, torch.Generator().manual_seed(1))
    changed = (drawn != images).flatten(1).any(1).float().mean().item()
    assert 0.15 < changed < 0.35
    assert torch.equal(drawn, outline(images, 0.25, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("size", [8, 16, 40])
def test_tokens_are_squares_of_eight_pixels(size):
    config = SMALL.model_copy(update={"image_size": size})
    model = MultimodalEncoder(config)
    assert model.image(torch.zeros(2, 3, size, size)).shape == (2, (size // 8) ** 2, 16)


@pytest.mark.parametrize(
    "field", ["width", "depth", "embedding", "text_buckets", "text_tokens", "image_size", "classes"]
)
def test_every_size_in_the_configuration_changes_the_manifest(field):
    change = {
        "width": 32,
        "depth": 3,
        "embedding": 9,
        "text_buckets": 65,
        "text_tokens": 6,
        "image_size": 24,
        "classes": 4,
    }
    other = SMALL.model_copy(update={field: change[field]})
    assert Manifest.of(MultimodalEncoder(SMALL)).digest != Manifest.of(MultimodalEncoder(other)).digest


def test_long_and_short_captions_in_one_batch_do_not_touch_each_other():
    model = MultimodalEncoder(SMALL)
    short = hash_captions(["cat"], 64, 5)
    long = hash_captions(["cat", "a cat on a mat"], 64, 5)
    torch.testing.assert_close(model.embed_texts(short)[0], model.embed_texts(long)[0])


def test_order_of_words_matters_and_case_does_not():
    model = MultimodalEncoder(SMALL)
    with torch.no_grad():
        model.text.positions.normal_(generator=torch.Generator().manual_seed(0))
    vectors = model.embed_texts(hash_captions(["dog bites man", "man bites dog", "Dog BITES man"], 64, 5))
    assert not torch.allclose(vectors[0], vectors[1]) and torch.equal(vectors[0], vectors[2])
