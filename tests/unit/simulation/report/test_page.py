"""The page's structure: parsed, never compared as pictures."""

from __future__ import annotations

import builtins
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report_sample

from simulation.report import Hostility, Institution, Metric, Participation, Picture, Retrieval, RunRecord, write_report
from simulation.report.page import render
from wire.errors import ResourceError

VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}$x^2$ &amp; \u202e\x00\n漢字🦔"


@dataclasses.dataclass
class Element:
    """A node of the parsed page."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)

    def all(self, tag: str, **wanted: str) -> list[Element]:
        """Every element below of that tag whose attributes hold these words."""
        found = []
        for child in self.children:
            if child.tag == tag and all(
                word in child.attributes.get(name.rstrip("_"), "").split() for name, word in wanted.items()
            ):
                found.append(child)
            found += child.all(tag, **wanted)
        return found

    @property
    def text(self) -> str:
        """All text below, spaces folded."""
        return " ".join(" ".join(self.pieces()).split())

    def pieces(self) -> Iterator[str]:
        yield from self.texts
        for child in self.children:
            yield from child.pieces()

    def walk(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            yield from child.walk()


class Strict(HTMLParser):
    """A parser that fails where a browser would repair: an end tag that doesn't match."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> repeats an attribute"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].texts.append(data)


def parse(page: str) -> Element:
    """The page as a tree; every element must be closed."""
    parser = Strict()
    parser.feed(page)
    parser.close()
    assert len(parser.open) == 1, f"<{parser.open[-1].tag}> isn't closed"
    return parser.open[0]


def hostile() -> RunRecord:
    """A record whose every text tries to be markup."""
    record = report_sample.make_record(institutions=2, rounds=2, queries=0)
    part = Participation(name=HOSTILE, outcome=HOSTILE, examples=5, metrics={"loss": 1.0}, evaluation={HOSTILE: 0.1})
    return dataclasses.replace(
        record,
        title=HOSTILE,
        federation=HOSTILE,
        started=HOSTILE,
        command=HOSTILE,
        versions={HOSTILE: HOSTILE},
        config={HOSTILE: {HOSTILE: HOSTILE}},
        plan_hash=HOSTILE,
        model=dataclasses.replace(record.model, digest=HOSTILE),
        institutions=(Institution(name=HOSTILE, data=HOSTILE, description=HOSTILE), record.institutions[1]),
        rounds=(dataclasses.replace(record.rounds[0], digest=HOSTILE, participants=(part,)),),
        final={HOSTILE: {HOSTILE: 0.5, "other": 0.1}, record.institutions[1].name: {HOSTILE: 0.5}},
        local_only={HOSTILE: {HOSTILE: 0.25}},
        headline_metric=Metric(name=HOSTILE, label=HOSTILE, unit=HOSTILE),
        gallery=(
            Retrieval(
                institution=HOSTILE,
                query=HOSTILE,
                rank=1,
                pictures=(Picture(png=report_sample.png(1), caption=HOSTILE, correct=True),),
            ),
        ),
        hostility=(Hostility(attack=HOSTILE, description=HOSTILE, knows=HOSTILE, institutions=(HOSTILE,), score=0.5),),
    )


def attacked() -> RunRecord:
    """A record with many hostile institutions and a backdoor."""
    record = report_sample.make_record(institutions=30, rounds=3, queries=0)
    said = Hostility(
        attack="model-replacement",
        description="Boosted.",
        knows="own data",
        institutions=tuple(one.name for one in record.institutions[5:]),
        score=math.nan,
        success=0.875,
    )
    return dataclasses.replace(record, hostility=(said,))


def sparse() -> RunRecord:
    """A record in which most numbers are missing or not numbers."""
    record = report_sample.make_record(institutions=3, rounds=4)
    nothing = {"missing_r1": math.nan, "missing_r10": math.inf}
    first, second, third = (one.name for one in record.institutions)
    rounds = tuple(
        dataclasses.replace(
            entry,
            version=0 if entry.number == 2 else entry.version,
            seconds=math.nan,
            participants=tuple(dataclasses.replace(part, evaluation=nothing) for part in entry.participants[:2]),
        )
        for entry in record.rounds
    )
    return dataclasses.replace(
        record,
        wall_seconds=math.nan,
        rounds=rounds,
        final={first: {"missing_r1": 0.5}, second: nothing},
        local_only={third: {"missing_r1": 0.5}, first: {"missing_r1": 0.25}},
        gallery=(),
    )


RECORDS = {
    "sample": report_sample.make_record(),
    "classification": report_sample.classification(),
    "one": report_sample.make_record(institutions=1, rounds=1),
    "hundred": report_sample.make_record(institutions=100, rounds=12, queries=1),
    "eight": report_sample.make_record(institutions=8, rounds=3, queries=0),
    "hostile": hostile(),
    "sparse": sparse(),
    "attacked": attacked(),
    "empty": dataclasses.replace(
        report_sample.make_record(institutions=0, rounds=0, queries=0), versions={}, config={}, other_metrics=()
    ),
}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """Every record as a page; made once."""
    return {name: render(record) for name, record in RECORDS.items()}


@pytest.fixture(scope="module", params=list(RECORDS))
def page(request: pytest.FixtureRequest, pages: dict[str, str]) -> Element:
    """Each page in turn, parsed."""
    return parse(pages[request.param])


# --- every page -------------------------------------------------------------------------------------------------------


def test_page_reaches_nothing_outside_itself(page: Element) -> None:
    assert not {"script", "link", "iframe", "object", "embed", "form", "base", "audio", "video"} & {
        element.tag for element in page.walk()
    }
    for element in page.walk():
        for name, value in element.attributes.items():
            assert not name.startswith("on"), f"<{element.tag} {name}>"
            if name in ("src", "href", "srcset", "poster", "data", "action", "xlink:href"):
                assert value.startswith(("#", "data:image/png;base64,")), f"{name}={value[:60]}"
            assert not re.search(r"url\((?!#)", value)
            assert "http:" not in value
            assert "https:" not in value
    (style,) = page.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text


def test_page_forbids_what_it_does_not_need(page: Element) -> None:
    (policy,) = [meta for meta in page.all("meta") if meta.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy.attributes["content"].startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_page_has_one_heading_and_no_gap_below_it(page: Element) -> None:
    levels = [int(element.tag[1]) for element in page.walk() if re.fullmatch("h[1-6]", element.tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_identifiers_are_unique_and_references_hit(page: Element) -> None:
    identifiers = [element.attributes["id"] for element in page.walk() if "id" in element.attributes]
    assert len(set(identifiers)) == len(identifiers)
    wanted = {
        word.lstrip("#")
        for element in page.walk()
        for name in ("href", "aria-labelledby")
        for word in element.attributes.get(name, "").split()
    }
    wanted |= {
        found
        for element in page.walk()
        for value in element.attributes.values()
        for found in re.findall(r"url\(#([^)]+)", value)
    }
    assert wanted <= set(identifiers)


def test_page_can_be_heard(page: Element) -> None:
    assert page.all("html")[0].attributes["lang"] == "en"
    assert all(image.attributes["alt"] for image in page.all("img"))
    for chart in page.all("svg", class_="chart"):
        assert chart.attributes["role"] == "img"
        assert chart.attributes["aria-label"]
    for table in page.all("table"):
        assert all(heading.attributes["scope"] in ("col", "row") for heading in table.all("th"))
        for row in table.all("tbody")[0].all("tr"):
            assert row.children[0].tag == "th"
            assert len(row.children) == len(table.all("thead")[0].all("tr")[0].children)


def test_what_scrolls_can_be_reached_by_keyboard(page: Element) -> None:
    for region in page.all("div", class_="scroll"):
        assert region.attributes["tabindex"] == "0"
        assert region.attributes["role"] == "region"
        assert region.attributes.get("aria-label") or region.attributes.get("aria-labelledby")


def test_no_drawn_colour_is_left(page: Element) -> None:
    """matplotlib's placeholders must all have become variables, and black must not be drawn by default."""
    for chart in page.all("svg", class_="chart"):
        for element in chart.walk():
            style = element.attributes.get("style", "")
            assert not re.search(r"#[0-9a-f]{6}", style), style
            if element.tag == "text":
                assert "fill: var(--" in style


def test_numbers_that_are_none_are_a_dash(page: Element) -> None:
    assert not re.search(r"\b(nan|inf|None)\b", page.all("body")[0].text)


# --- this or that page ------------------------------------------------------------------------------------------------


def test_sample_says_what_happened(pages: dict[str, str]) -> None:
    page = parse(pages["sample"])
    assert page.all("h1")[0].text == "The federation beats the best single institution by 31.9 points."
    assert len(page.all("li", class_="card")) == 4
    assert len(page.all("svg", class_="chart")) == 4
    assert {"42.7 %", "10.8 %"} <= {figure.text for figure in page.all("dl", class_="figures")[0].all("dd")}
    assert [name for name in report_sample.STYLES if name not in page.all("main")[0].text] == []


def test_gallery_frames_the_right_picture_and_only_it(pages: dict[str, str]) -> None:
    page, record = parse(pages["sample"]), RECORDS["sample"]
    queries = page.all("li", class_="query")
    assert len(queries) == len(record.gallery)
    for shown, query in zip(queries, record.gallery, strict=True):
        framed = shown.all("ol")[0].all("li", class_="correct")
        assert len(framed) == (query.rank <= 5)
        for picture in framed:
            assert picture.all("img")[0].attributes["alt"] == f"{query.query}, the right answer"
        assert len(shown.all("img")) == 5
        assert shown.all("h4")[0].text == f"“{query.query}”"
    assert "the right picture came 14th, below those shown" in page.text


def test_longer_galleries_fold(pages: dict[str, str]) -> None:
    page = parse(render(report_sample.make_record(institutions=2, rounds=1, queries=9)))
    folded = [block for block in page.all("details") if block.all("li", class_="query")]
    assert [len(block.all("li", class_="query")) for block in folded] == [3, 3]
    assert "3 more queries" in folded[0].all("summary")[0].text
    hundred = parse(pages["hundred"])
    assert "96 more institutions" in hundred.text


def test_rounds_table_tells_who_was_missing(pages: dict[str, str]) -> None:
    rows = parse(pages["sample"]).all("table", class_="rounds")[0].all("tbody")[0].all("tr")
    assert len(rows) == 20
    assert "3 of 4" in rows[2].text
    assert "OpenMoji: vanished" in rows[2].text
    assert len(rows[2].all("span", class_="out")) == 1
    assert not rows[3].all("span", class_="out")


def test_classification_has_no_gallery_and_its_own_unit(pages: dict[str, str]) -> None:
    page = parse(pages["classification"])
    assert not page.all("li", class_="query")
    assert "%" not in page.all("h1")[0].text
    assert page.all("h1")[0].text.endswith("by 0.170.")
    # Less is better here: a fall is marked as a gain.
    gains = page.all("span", class_="gain")
    assert all(gain.text.startswith("−") and "up" in gain.attributes["class"].split() for gain in gains)
    assert len(gains) == 3


def test_a_hundred_institutions_are_summed_up(pages: dict[str, str]) -> None:
    page = parse(pages["hundred"])
    assert not page.all("li", class_="card")
    everyone = next(block for block in page.all("details") if "All institutions" in block.text)
    rows = everyone.all("tbody")[0].all("tr")
    assert len(rows) == 100
    gains = [float(row.all("td")[-1].text.split()[0].replace("−", "-")) for row in rows]
    assert gains == sorted(gains, reverse=True)
    assert "median" in page.text
    assert "99 of 100" in page.all("table", class_="rounds")[0].text


def test_missing_numbers_leave_gaps_not_errors(pages: dict[str, str]) -> None:
    page = parse(pages["sparse"])
    assert page.all("h1")[0].text.startswith("The federation draws level")
    assert "none" in [cell.text for cell in page.all("table", class_="rounds")[0].all("tr")[2].all("td")]
    assert "curves" not in [one.attributes.get("aria-label") for one in page.all("svg", class_="chart")]
    assert "No final score was reported." not in page.all("li", class_="card")[0].text
    assert "No final score was reported." in page.all("li", class_="card")[1].text


def test_without_local_scores_nothing_speaks_of_them() -> None:
    page = parse(render(dataclasses.replace(RECORDS["sample"], local_only={}, title="The emoji-styles run")))
    assert "Dashed" not in page.text
    assert [heading.text for heading in page.all("li", class_="card")[0].all("thead")[0].all("th")] == ["together"]
    assert page.all("p", class_="eyebrow")[0].text.count("emoji-styles") == 1


def test_an_empty_run_still_makes_a_page(pages: dict[str, str]) -> None:
    page = parse(pages["empty"])
    assert page.all("h1")[0].text == "The federation finished no rounds."
    assert "No round was run." in page.text
    assert not page.all("svg", class_="chart")


def test_hostile_text_stays_text(pages: dict[str, str]) -> None:
    page = parse(pages["hostile"])
    assert not page.all("script")
    assert all(image.attributes["src"].startswith("data:image/png") for image in page.all("img"))
    assert page.all("title")[0].text.startswith("</title><script>alert(1)</script>")
    assert "{{ 7*7 }}" in page.text
    assert "49" not in page.all("title")[0].text
    assert "$x^2$" in page.all("li", class_="card")[0].text
    assert "\u202e" not in pages["hostile"]
    assert "\x00" not in pages["hostile"]


def test_institutions_that_were_hostile_on_purpose_are_named(pages: dict[str, str]) -> None:
    page = parse(pages["attacked"])
    (section,) = (one for one in page.all("section") if "The hostile institutions" in one.text)
    assert "25 institutions were hostile" in section.text and "and 5 more" in section.text
    assert "model-replacement" in section.text and "their own data only" in section.text
    assert "for 87.5 %" in section.text.replace("\u202f", " ")
    assert "hostile" not in parse(pages["sample"]).text.lower()


def test_same_record_same_bytes(pages: dict[str, str]) -> None:
    assert render(RECORDS["sample"]) == pages["sample"]


# --- writing it -------------------------------------------------------------------------------------------------------


def test_written_file_is_the_page_and_nothing_is_left_beside_it(tmp_path: Path, pages: dict[str, str]) -> None:
    path = tmp_path / "new" / "folder" / "report.html"
    write_report(RECORDS["sample"], path)
    write_report(RECORDS["sample"], path)
    assert path.read_text(encoding="utf-8") == pages["sample"]
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match=r"report can't be written to .*report.html"):
        write_report(RECORDS["one"], tmp_path / "file" / "report.html")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_library_is_named_with_the_way_to_get_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ResourceError, match=package) as caught:
        render(RECORDS["one"])
    assert "fedloom[demo]" in caught.value.hint
    assert caught.value.code == "package-missing"
