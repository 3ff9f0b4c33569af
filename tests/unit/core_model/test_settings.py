"""A wrong key in the TOML: the key, the section, the nearest valid key."""

import pytest

from core_model import LearningConfig, LearningConfigError, parse_learning, read_learning


def test_other_tables_are_left_to_others(tmp_path):
    path = tmp_path / "federation.toml"
    path.write_text('[federation]\nname = "x"\n[training]\nlocal_steps = 3\n')
    assert read_learning(path) == LearningConfig.model_validate({"training": {"local_steps": 3}})


@pytest.mark.parametrize(
    ("text", "parts", "hint"),
    [
        ("[training]\nlerning_rate = 1\n", ['"lerning_rate"', "[training]"], '"learning_rate"'),
        ("[model]\nzzz = 1\nyyy = 2\n", ['"zzz"', "[model]", "1 more"], "image_size"),
        ("[training]\nlearning_rate = -1\n", ['"learning_rate"', "[training]", "greater than 0"], ""),
        ("[model]\nwidth = 9\n", ['"width"', "[model]", "multiple of heads"], ""),
        ('[task]\nkind = "classification"\n', ['"classes"', "[model]"], ""),
        ("model = 3\n", ["[model]"], ""),
        ("[model\n", ["not valid TOML"], ""),
    ],
)
def test_errors_name_section_key_and_remedy(tmp_path, text, parts, hint):
    path = tmp_path / "federation.toml"
    path.write_text(text)
    with pytest.raises(LearningConfigError) as caught:
        read_learning(path)
    assert str(path) in caught.value.message
    for part in parts:
        assert part in caught.value.message
    assert hint in caught.value.hint


def test_a_missing_or_unreadable_file_is_said(tmp_path):
    with pytest.raises(LearningConfigError, match="no such file"):
        read_learning(tmp_path / "none.toml")
    with pytest.raises(LearningConfigError, match="can't be read"):
        read_learning(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(LearningConfigError, match="can't be read"):
        read_learning(binary)


def test_tables_from_a_plan_are_read_the_same_way():
    assert parse_learning({"training": {"threads": 2}}).training.threads == 2
