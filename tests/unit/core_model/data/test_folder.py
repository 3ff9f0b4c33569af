"""A user's folder: what is wrong is named by row and column, and nothing outside is read."""

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from core_model import DataError
from core_model.data.folder import load_folder


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "site"
    (root / "pictures").mkdir(parents=True)
    for i in range(40):
        Image.new("RGB", (20, 10), (6 * i, 0, 0)).save(root / "pictures" / f"{i}.png")
    return root


def manifest(folder, *lines):
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


def test_texts_labels_and_splits(folder):
    lines = [f'pictures/{i}.png,"a picture, number {i}",{i % 3},{"test" if i < 5 else "train"}' for i in range(40)]
    source = load_folder(manifest(folder, "\ufefffile,text,label,split", *lines), 16)
    assert (len(source.train), len(source.evaluation["test"]), source.classes) == (35, 5, 3)
    assert source.train.images.shape == (35, 3, 16, 16)
    assert source.train.captions[0] == ("a picture, number 5",)
    # A wide picture is fitted on white, not cut.
    assert source.train.images[0, :, 0, 8].tolist() == [255, 255, 255]
    assert source.train.images[0, :, 8, 8].tolist() == [30, 0, 0]


def test_without_a_split_one_in_ten_is_held_out_always_the_same(folder):
    path = manifest(folder, "file,label", *[f"pictures/{i}.png,{i}" for i in range(40)])
    first, second = load_folder(path, 8), load_folder(path, 8)
    held_out = first.evaluation["test"].labels.tolist()
    assert 0 < len(held_out) < 12 and held_out == second.evaluation["test"].labels.tolist()
    assert first.train.captions is None


def test_parquet_says_the_same(folder):
    rows = {"file": [f"pictures/{i}.png" for i in range(4)], "label": [0, 1, 0, 1], "split": ["train"] * 4}
    parquet.write_table(pyarrow.table(rows), folder / "manifest.parquet")
    source = load_folder(str(folder), 8)
    assert source.train.labels.tolist() == [0, 1, 0, 1] and not source.evaluation
    rows["label"] = [0, None, 0, 1]
    parquet.write_table(pyarrow.table(rows), folder / "manifest.parquet")
    with pytest.raises(DataError, match=r"row 2: column \"label\""):
        load_folder(str(folder), 8)
    (folder / "manifest.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="can't be read"):
        load_folder(str(folder), 8)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            ["file,label", "pictures/1.png,0", "../secret.png,1"],
            r'line 3, column "file": "../secret.png" is not inside',
        ),
        (["file,label", "/etc/passwd,1"], r'line 2, column "file": "/etc/passwd" is not inside'),
        (["file,label", "link.png,1"], r"is not inside"),
        (["file,label", "pictures/99.png,1"], r'line 2, column "file": there is no file "pictures/99.png"'),
        (["file,label", ",1"], r'column "file"'),
        (["file,label", "pictures/1.png,cat"], r'line 2, column "label": "cat" is not an integer'),
        (["file,label", "pictures/1.png,-1"], r'column "label": "-1"'),
        (["file,label,split", "pictures/1.png,1,Te st"], r'line 2, column "split"'),
        (["file,label,split", "pictures/1.png,1,test"], "no training rows"),
        (["file,text", "pictures/1.png,a", "pictures/2.png,"], r'line 3: column "text" is filled in some rows'),
        (["file,label", "manifest.csv,1"], r"line 2, column .file.: manifest.csv is not a picture"),
        (["file,label", "pictures/1.png"], "fewer cells than columns"),
        (["file,label", "pictures/1.png,1,2"], "more cells than columns"),
        (["file,caption", "pictures/1.png,x"], 'unknown column "caption"'),
        (["file", "pictures/1.png"], "at least one of"),
        (["label", "1"], 'needs the column "file"'),
        (["file,label"], "no rows"),
        (["file,label", '"pictures/1.png,1'], "can't be read"),
    ],
)
def test_errors_name_row_and_column(folder, lines, reason):
    Image.new("RGB", (4, 4)).save(folder.parent / "secret.png")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    with pytest.raises(DataError, match=reason):
        load_folder(manifest(folder, *lines), 8)


def test_exactly_one_manifest(folder):
    with pytest.raises(DataError, match="neither"):
        load_folder(str(folder), 8)
    manifest(folder, "file,label", "pictures/1.png,1")
    (folder / "manifest.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="both"):
        load_folder(str(folder), 8)


def test_not_utf8(folder):
    (folder / "manifest.csv").write_bytes(b"file,text\npictures/1.png,\xff\n")
    with pytest.raises(DataError, match="can't be read"):
        load_folder(str(folder), 8)


def test_a_column_says_whose_records_they_are(folder):
    lines = [f"pictures/{i}.png,{i % 3},{('ann', 'bob', ' ann ')[i % 3]},train" for i in range(6)]
    source = load_folder(manifest(folder, "file,label,person,split", *lines), 8)
    persons = source.train.persons.tolist()
    assert persons[0] == persons[2] == persons[3] != persons[1] == persons[4]
    # A person's number doesn't depend on who else is there.
    fewer = load_folder(manifest(folder, "file,label,person,split", lines[1]), 8)
    assert fewer.train.persons.tolist() == [persons[1]]
    assert load_folder(manifest(folder, "file,label", "pictures/1.png,0"), 8).train.persons is None


def test_whose_records_they_are_is_said_of_all_or_none(folder):
    with pytest.raises(DataError, match=r'line 3: column "person" is filled in some rows'):
        load_folder(manifest(folder, "file,label,person", "pictures/1.png,0,ann", "pictures/2.png,1,"), 8)
