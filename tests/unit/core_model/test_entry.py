"""User code is imported only where the site allows it."""

import sys

import pytest

from core_model import UserCodeError
from core_model.entry import is_entry_point, resolve


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("a:b", True),
        ("a.b_1:c", True),
        ("/a:b", False),
        ("a:b:c", False),
        ("a", False),
        ("1a:b", False),
        ("a:1", False),
    ],
)
def test_the_form_of_a_name(text, yes):
    assert is_entry_point(text) is yes


def test_nothing_is_imported_without_leave(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserCodeError, match="doesn't allow") as caught:
        resolve("planted:run", frozenset({"planted:other"}))
    assert "planted:run" in caught.value.hint
    assert "planted" not in sys.modules


def test_what_is_allowed_is_found():
    assert resolve("os.path:join", frozenset({"os.path:join"}))("a", "b") == "a/b"


@pytest.mark.parametrize(("name", "reason"), [("no_such_module:f", "can't be imported"), ("os:nothing", "no function")])
def test_a_name_that_leads_nowhere_is_said(name, reason):
    with pytest.raises(UserCodeError, match=reason):
        resolve(name, frozenset({name}))
