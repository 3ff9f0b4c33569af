"""The blob store on real files."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire import BlobStore, DataError, RefusedError, ResourceError
from wire.blobs import BlobRef, disk_errors

ROOT = Path(__file__).parents[3]
DATA = os.urandom(300_000)
DIGEST = hashlib.sha256(DATA).digest()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def files(store: BlobStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def code(caught: pytest.ExceptionInfo[RefusedError]) -> str:
    return caught.value.code


def test_a_blob_exists_whole_or_not_at_all(store: BlobStore) -> None:
    writer = store.open_writer(DIGEST, len(DATA))
    writer.write([DATA[:1000], DATA[1000:]])
    assert not store.has(DIGEST)
    path = writer.commit(sync=True)
    assert path == store.path(DIGEST)
    assert path.read_bytes() == DATA
    assert (store.has(DIGEST), store.size(DIGEST), store.received(DIGEST)) == (True, len(DATA), 0)
    assert files(store) == [DIGEST.hex()]
    assert path.stat().st_mode & 0o077 == 0


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=4))
def test_resuming_at_any_place(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    store = BlobStore(tmp_path_factory.mktemp("blobs"))
    for end in [*sorted(cuts), len(DATA)]:
        offset = store.received(DIGEST)
        writer = store.open_writer(DIGEST, len(DATA), offset)
        writer.write([memoryview(DATA)[offset:end]])
        assert writer.received == end
        if end < len(DATA):
            writer.close()
    assert writer.commit().read_bytes() == DATA


def test_starting_again_from_zero(store: BlobStore) -> None:
    first = store.open_writer(DIGEST, len(DATA))
    first.write([b"wrong"])
    first.close()
    second = store.open_writer(DIGEST, len(DATA), 0)
    second.write([DATA])
    assert second.commit().read_bytes() == DATA


def test_truncated_is_kept(store: BlobStore) -> None:
    writer = store.open_writer(DIGEST, len(DATA))
    writer.write([DATA[:100]])
    with pytest.raises(RefusedError, match=f"100 of {len(DATA)}") as caught:
        writer.commit()
    assert code(caught) == "blob-truncated"
    assert store.received(DIGEST) == 100


def test_a_wrong_digest_is_removed(store: BlobStore) -> None:
    writer = store.open_writer(DIGEST, len(DATA))
    writer.write([DATA[:-1] + bytes([DATA[-1] ^ 1])])
    with pytest.raises(RefusedError) as caught:
        writer.commit()
    assert code(caught) == "blob-digest"
    assert files(store) == []


def test_too_much_is_removed(store: BlobStore) -> None:
    writer = store.open_writer(DIGEST, len(DATA))
    with pytest.raises(RefusedError) as caught:
        writer.write([DATA, b"x"])
    assert code(caught) == "blob-size"
    assert files(store) == []
    writer.close()


def test_a_partial_file_damaged_between_two_tries_is_noticed(store: BlobStore) -> None:
    writer = store.open_writer(DIGEST, len(DATA))
    writer.write([DATA[:1000]])
    writer.close()
    part = store.folder / f"{DIGEST.hex()}.part"
    part.write_bytes(bytes(1000))
    writer = store.open_writer(DIGEST, len(DATA), 1000)
    writer.write([DATA[1000:]])
    with pytest.raises(RefusedError) as caught:
        writer.commit()
    assert code(caught) == "blob-digest"


@pytest.mark.parametrize("offset", [1, 99, 101, len(DATA) + 1])
def test_an_offset_that_does_not_fit(store: BlobStore, offset: int) -> None:
    writer = store.open_writer(DIGEST, len(DATA))
    writer.write([DATA[:100]])
    writer.close()
    with pytest.raises(RefusedError) as caught:
        store.open_writer(DIGEST, len(DATA), offset)
    assert code(caught) == "blob-offset"


def test_the_newer_transfer_replaces_the_older(store: BlobStore) -> None:
    old = store.open_writer(DIGEST, len(DATA))
    old.write([DATA[:100]])
    new = store.open_writer(DIGEST, len(DATA), 100)
    with pytest.raises(RefusedError) as caught:
        old.write([b"x"])
    assert code(caught) == "replaced"
    new.write([DATA[100:]])
    assert new.commit().read_bytes() == DATA


def test_owners_cannot_touch_each_other(store: BlobStore) -> None:
    mine, theirs = store.open_writer(DIGEST, len(DATA), 0, "a"), store.open_writer(DIGEST, len(DATA), 0, "b")
    mine.write([DATA[:100]])
    theirs.write([b"garbage"])
    assert (store.received(DIGEST, "a"), store.received(DIGEST, "b")) == (100, 7)
    mine.write([DATA[100:]])
    assert mine.commit().read_bytes() == DATA
    store.discard_part(DIGEST, "b")
    assert not store.writing(DIGEST, "b")
    assert files(store) == [DIGEST.hex()]


@pytest.mark.parametrize("digest", [b"", b"../../etc/passwd", b"x" * 31, b"x" * 33, b"/" * 64])
def test_no_name_leads_out_of_the_folder(store: BlobStore, digest: bytes) -> None:
    for call in (store.path, store.has, store.size, store.received, store.remove, lambda d: store.open_writer(d, 1)):
        with pytest.raises(RefusedError) as caught:
            call(digest)
        assert code(caught) == "blob-unknown"


@given(st.binary(min_size=32, max_size=32))
def test_any_digest_is_a_file_inside(tmp_path_factory: pytest.TempPathFactory, digest: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert BlobStore(folder).path(digest).resolve().parent == folder.resolve()


@pytest.mark.parametrize("owner", ["../x", "a/b", "A", ".", "a.part"])
def test_no_owner_leads_out_of_the_folder(store: BlobStore, owner: str) -> None:
    with pytest.raises(ValueError, match="name"):
        store.open_writer(DIGEST, 1, 0, owner)


def test_making_a_blob_here(store: BlobStore) -> None:
    with store.writer() as writer:
        writer.write(DATA[:10])
        writer.write(memoryview(DATA)[10:])
        assert writer.commit() == DIGEST
    assert store.path(DIGEST).read_bytes() == DATA
    with pytest.raises(RuntimeError), store.writer() as writer:
        writer.write(b"half")
        raise RuntimeError
    assert files(store) == [DIGEST.hex()]


def test_numpy_rows_are_written_without_a_copy(store: BlobStore) -> None:
    import numpy as np

    row = np.arange(1000, dtype="<f4")
    with store.writer() as writer:
        writer.write(row.data)
        assert store.path(writer.commit()).read_bytes() == row.tobytes()


def test_put_file(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    assert store.put_file(tmp_path / "file") == BlobRef(DIGEST, len(DATA))
    assert store.path(DIGEST).read_bytes() == DATA
    with pytest.raises(DataError, match="missing"):
        store.put_file(tmp_path / "missing")


def test_garbage_collection(store: BlobStore) -> None:
    names = []
    for content in (b"a", b"b", b"c"):
        with store.writer() as writer:
            writer.write(content)
            names.append(writer.commit())
    left = store.open_writer(DIGEST, len(DATA), 0, "gone")
    left.close()
    busy = store.open_writer(DIGEST, len(DATA), 0, "busy")
    with store.writer() as being_made:
        being_made.write(b"d")
        assert store.keep_only([names[1]]) == 3
        kept = being_made.commit()
    assert files(store) == sorted([names[1].hex(), kept.hex(), f"{DIGEST.hex()}.busy.part"])
    busy.write([DATA])
    assert busy.commit().is_file()


def test_what_can_be_gone_on_with_is_no_garbage(store: BlobStore) -> None:
    digests = [bytes([number]) * 32 for number in range(3)]
    for digest, owner in ((digests[0], ""), (digests[1], "slow"), (digests[2], "gone")):
        writer = store.open_writer(digest, 100, 0, owner)
        writer.write([bytes(60)])
        writer.close()
    assert store.parts() == {"slow": {digests[1]: 60}, "gone": {digests[2]: 60}}
    assert store.keep_only([digests[0]], lambda owner: owner == "slow") == 1
    assert files(store) == sorted([f"{digests[0].hex()}.part", f"{digests[1].hex()}.slow.part"])
    assert store.open_writer(digests[0], 100, 60).received == 60


def test_a_transfer_that_begins_during_garbage_collection_keeps_its_file(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    listed = os.listdir

    def listdir(folder: Path) -> list[str]:
        begun.append(store.open_writer(DIGEST, len(DATA), 0, "new"))
        return listed(folder)

    monkeypatch.setattr("wire.blobs.os.listdir", listdir)
    assert store.keep_only([]) == 0
    begun[0].write([DATA])
    assert begun[0].commit().read_bytes() == DATA


def test_what_a_killed_process_was_making_is_removed_at_the_next_start(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from wire import BlobStore; "
        "writer = BlobStore(Path(sys.argv[1])).writer(); os._exit(9)"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert len(list(tmp_path.glob("local-*.part"))) == 1
    store = BlobStore(tmp_path)
    with store.writer() as mine:
        BlobStore(tmp_path)
        assert len(list(tmp_path.glob("local-*.part"))) == 1
        mine.commit()


def test_removing_and_asking_for_what_is_not_there(store: BlobStore) -> None:
    store.remove(DIGEST)
    with pytest.raises(RefusedError) as caught:
        store.size(DIGEST)
    assert code(caught) == "blob-unknown"


def test_the_reserve_is_kept(tmp_path: Path) -> None:
    greedy = BlobStore(tmp_path, reserve_bytes=1 << 60)
    with pytest.raises(ResourceError) as caught:
        greedy.open_writer(DIGEST, 1)
    assert caught.value.code == "disk-full"
    with pytest.raises(ResourceError):
        BlobStore(tmp_path).open_writer(DIGEST, 1 << 50)
    assert files(greedy) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_gets_full_in_the_middle(store: BlobStore) -> None:
    """/dev/full gives the kernel's own ENOSPC; what was written before stays and can be gone on with."""
    writer = store.open_writer(DIGEST, len(DATA))
    writer.write([DATA[:1000]])
    assert writer._descriptor is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._descriptor)
    os.close(full)
    with pytest.raises(ResourceError, match="disk is full") as caught:
        writer.write([DATA[1000:]])
    assert caught.value.code == "disk-full"
    assert str(store.folder) in caught.value.message
    with pytest.raises(ValueError, match="closed"):
        writer.write([DATA[1000:]])
    assert store.received(DIGEST) == 1000
    again = store.open_writer(DIGEST, len(DATA), 1000)
    again.write([DATA[1000:]])
    assert again.commit().read_bytes() == DATA


def test_other_failures_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Input/output"), disk_errors(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(ResourceError, match="disk is full"), disk_errors(tmp_path):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="file"):
        BlobStore(tmp_path / "file")


def test_two_threads_making_the_same_blob(store: BlobStore) -> None:
    def make() -> None:
        with store.writer() as writer:
            writer.write(DATA)
            writer.commit(sync=False)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files(store) == [DIGEST.hex()]


def test_no_writer_can_change_a_blob_that_exists(store: BlobStore) -> None:
    """Many transfers of one blob by one owner at once, half of them hostile: what exists has its digest, for good."""
    barrier = threading.Barrier(8)
    outcomes: list[object] = []

    def transfer(number: int) -> None:
        content = DATA if number % 2 else bytes(len(DATA))
        barrier.wait()
        for _ in range(20):
            try:
                writer = store.open_writer(DIGEST, len(DATA), 0, "a")
                for start in range(0, len(content), 100_000):
                    writer.write([content[start : start + 100_000]])
                writer.commit()
                outcomes.append("committed")
            except RefusedError as error:
                outcomes.append(error.code)
            except Exception as error:
                outcomes.append(error)
            if store.has(DIGEST) and store.path(DIGEST).read_bytes() != DATA:
                outcomes.append("changed")

    threads = [threading.Thread(target=transfer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 160
    assert set(outcomes) <= {"committed", "replaced", "blob-digest"}
    with store._lock:
        assert store._writers == {}


def test_of_several_newcomers_the_last_one_counts(store: BlobStore) -> None:
    writers = [store.open_writer(DIGEST, len(DATA)) for _ in range(3)]
    for old in writers[:2]:
        with pytest.raises(RefusedError) as caught:
            old.commit()
        assert code(caught) == "replaced"
        old.close()
    writers[2].write([DATA])
    writers[2].commit()
    with pytest.raises(ValueError, match="closed"):
        writers[2].write([b"x"])
    assert store.path(DIGEST).read_bytes() == DATA
