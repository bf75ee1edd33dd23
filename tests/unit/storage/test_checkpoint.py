from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from raygf.errors import CheckpointError, StorageError
from raygf.storage.checkpoint import Checkpoint, CheckpointStore, load_checkpoint, read_archive, write_archive
from raygf.training.network import NetworkState


def make(round: int = 3) -> Checkpoint:
    vector = np.linspace(-1, 1, 96, dtype=np.float32)
    buffers = {"bn.running_mean": np.ones(4, np.float32), "bn.n": np.array(round)}
    method = {"eta": np.full((3, 57), 0.25, np.float32), "adam_steps": np.array(7)}
    return Checkpoint(round, NetworkState(vector, buffers), method, {"config": {"lr": 0.1}, "run_id": "ä"})


def same(one: Checkpoint, two: Checkpoint) -> bool:
    def arrays(checkpoint):
        named = {"vector": checkpoint.network.vector}
        named |= {f"b/{n}": a for n, a in checkpoint.network.buffers.items()}
        return named | {f"m/{n}": a for n, a in checkpoint.method.items()}

    a, b = arrays(one), arrays(two)
    return (
        one.round == two.round
        and a.keys() == b.keys()
        and all(a[n].dtype == b[n].dtype and a[n].shape == b[n].shape for n in a)
        and all(a[n].tobytes() == b[n].tobytes() for n in a)
    )


def store(tmp_path: Path, keep: int = 2) -> CheckpointStore:
    found = CheckpointStore(str(tmp_path), "run", keep)
    found.check_writable()
    return found


def raw(tmp_path: Path) -> bytes:
    return Path(store(tmp_path).save(make())).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return raw(tmp_path_factory.mktemp("whole"))


def put(tmp_path: Path, round: int, content: bytes) -> Path:
    path = tmp_path / "run" / f"round-{round:06d}.npz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def archive(**members) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **members)
    return stream.getvalue()


def test_round_trip_is_exact(tmp_path):
    path = store(tmp_path).save(make())
    assert path == f"{tmp_path}/run/round-000003.npz"
    for loaded in (store(tmp_path).load(3), load_checkpoint(path), store(tmp_path).newest()[0]):
        assert same(loaded, make())
        assert loaded.meta["config"] == {"lr": 0.1} and loaded.meta["run_id"] == "ä"


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(width=32), min_size=1, max_size=20), st.integers(0, 999_999))
def test_any_numbers_come_back(numbers, round):
    checkpoint = Checkpoint(round, NetworkState(np.array(numbers, np.float32), {}), {}, {})
    stream = io.BytesIO()
    write_archive(stream, checkpoint)
    assert same(read_archive(stream), checkpoint)


def test_path_may_be_a_uri(tmp_path):
    found = CheckpointStore(f"file://{tmp_path}", "run", 2)
    found.check_writable()
    path = found.save(make())
    assert path == f"file://{tmp_path}/run/round-000003.npz"
    assert same(load_checkpoint(path), make())
    assert same(load_checkpoint(f"{tmp_path}/run/round-000003.npz"), make())


def test_newest_of_several(tmp_path):
    found = store(tmp_path, keep=9)
    for round in (2, 10, 9):
        found.save(make(round))
    assert found.rounds() == [2, 9, 10]
    newest, notes = found.newest()
    assert newest.round == 10 and notes == ()


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_only_the_newest_are_kept(tmp_path, keep):
    found = store(tmp_path, keep)
    for round in range(1, 6):
        found.save(make(round))
    assert found.rounds() == list(range(6 - keep, 6))


def test_saving_again_replaces(tmp_path):
    found = store(tmp_path)
    put(tmp_path, 3, b"rubbish")
    found.save(make())
    assert same(found.load(3), make())


def test_no_checkpoints(tmp_path):
    found = CheckpointStore(str(tmp_path), "nothing", 2)
    assert found.rounds() == []
    assert found.newest() == (None, ())
    with pytest.raises(CheckpointError, match=r"round-000001\.npz"):
        found.load(1)


def test_other_files_are_not_checkpoints(tmp_path):
    found = store(tmp_path)
    found.save(make())
    for name in ("round-000009.npz.part", "round-12.npz", "notes.txt", "xround-000008.npz", ".probe"):
        (tmp_path / "run" / name).write_bytes(b"x")
    assert found.rounds() == [3]
    assert found.newest()[0].round == 3


def test_nothing_is_left_beside_the_checkpoint(tmp_path):
    store(tmp_path).save(make())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["round-000003.npz"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.99, 0.999])
def test_a_truncated_archive_is_refused(whole, share):
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        read_archive(io.BytesIO(whole[: int(share * len(whole))]))


def test_a_flipped_bit_is_noticed_or_harmless(whole):
    """Zip checks the arrays' bytes; here its own directory is hit as well, every bit of it."""
    directory = 8 * whole.index(b"PK\x01\x02")
    wrong = []
    for bit in [*range(0, directory, 37), *range(directory, 8 * len(whole))]:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        try:
            if not same(read_archive(io.BytesIO(bytes(damaged))), make()):
                wrong.append((bit, "read as something else"))
        except CheckpointError:
            pass
        except Exception as error:
            wrong.append((bit, repr(error)))
    assert wrong == []


def flipped(whole: bytes, field: int, mask: int) -> bytes:
    """``whole`` with bits of the second member's entry in the zip directory flipped, at byte ``field``."""
    entry = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 4)
    damaged = bytearray(whole)
    damaged[entry + field] ^= mask
    return bytes(damaged)


@pytest.mark.parametrize(
    ("field", "mask"),
    [(6, 0x40), (8, 0x01), (10, 0x01), (10, 0x80), (8, 0x20)],
    ids=["version", "encrypted", "compression", "method", "patched"],
)
def test_damage_to_the_zip_directory_is_a_checkpoint_error(whole, field, mask):
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        read_archive(io.BytesIO(flipped(whole, field, mask)))


def test_members_lost_from_the_zip_directory_are_noticed(whole):
    """A damaged comment length swallows the entries that follow it."""
    with pytest.raises(CheckpointError):
        read_archive(io.BytesIO(flipped(whole, 33, 0x10)))


def test_a_shortened_array_is_noticed():
    """Damage in an array's header makes NumPy read less; zip's checksum is only looked at after all bytes."""
    vector = np.zeros(90_000, np.float32)
    whole = bytearray(archive(meta=np.array(json.dumps({"format": 1, "round": 1})), vector=vector))
    place = whole.index(b"(90000,)") + 1
    whole[place] ^= ord("9") ^ ord("1")
    with pytest.raises(CheckpointError):
        read_archive(io.BytesIO(bytes(whole)))


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nothing_is_ever_unpickled(tmp_path):
    fuse = tmp_path / "executed"
    meta = np.array(json.dumps({"format": 1, "round": 1}))
    bomb = np.array([Bomb(fuse)], dtype=object)
    vector = np.zeros(2, np.float32)
    bombs = {
        "object array": archive(meta=meta, vector=bomb),
        "object buffer": archive(meta=meta, vector=vector, **{"buffer/x": bomb}),
        "object meta": archive(meta=bomb, vector=vector),
        "plain pickle": pickle.dumps(Bomb(fuse)),
    }
    stream = io.BytesIO()
    np.save(stream, bomb, allow_pickle=True)
    bombs["npy"] = stream.getvalue()
    for what, content in bombs.items():
        with pytest.raises(CheckpointError):
            read_archive(io.BytesIO(content))
            pytest.fail(what)
    assert not fuse.exists()
    pickle.loads(bombs["plain pickle"])
    assert fuse.exists()  # the bombs were live


def test_object_arrays_are_not_written(tmp_path):
    bad = Checkpoint(1, NetworkState(np.zeros(2, np.float32), {}), {"x": np.array([{}], dtype=object)}, {})
    with pytest.raises((ValueError, StorageError)):
        store(tmp_path).save(bad)
    assert store(tmp_path).rounds() == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"PK\x03\x04" + bytes(100),
        archive(vector=np.zeros(2)),
        archive(meta=np.array("{}"), vector=np.zeros(2)),
        archive(meta=np.array("[1]"), vector=np.zeros(2)),
        archive(meta=np.array("no json"), vector=np.zeros(2)),
        archive(meta=np.array(json.dumps({"format": 1, "round": 1}))),
        archive(meta=np.array(json.dumps({"format": 1, "round": None})), vector=np.zeros(2)),
    ],
    ids=["empty", "text", "zip", "no meta", "bare meta", "list meta", "text meta", "no vector", "no round"],
)
def test_what_is_no_checkpoint_is_refused(content):
    with pytest.raises(CheckpointError):
        read_archive(io.BytesIO(content))


def test_an_unknown_format_is_refused_by_number():
    content = archive(meta=np.array(json.dumps({"format": 2, "round": 1})), vector=np.zeros(2))
    with pytest.raises(CheckpointError, match="has format 2, this version reads format 1"):
        read_archive(io.BytesIO(content))


def test_a_plain_zip_is_refused():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archived:
        archived.writestr("meta", json.dumps({"format": 1, "round": 1}))
        archived.writestr("vector", struct.pack("<2f", 1, 2))
    with pytest.raises(CheckpointError):
        read_archive(io.BytesIO(stream.getvalue()))


@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_a_damaged_newest_one_is_passed_over_with_a_note(tmp_path, content):
    found = store(tmp_path, keep=9)
    found.save(make(1))
    found.save(make(2))
    put(tmp_path, 3, content)
    newest, notes = found.newest()
    assert newest.round == 2
    assert len(notes) == 1
    assert "round-000003.npz" in notes[0] and "trying the one before" in notes[0]


def test_where_all_are_damaged_the_newest_is_named(tmp_path):
    put(tmp_path, 1, b"x")
    put(tmp_path, 2, b"x")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .*/run can be read: .*round-000002\.npz: not"
    ):
        store(tmp_path).newest()


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_later_ones_do_not_crowd_out_what_is_saved_now(tmp_path, keep):
    """A run that had to start over keeps the checkpoints that it writes."""
    found = store(tmp_path, keep)
    for round in (7, 8):
        put(tmp_path, round, b"rubbish")
    path = found.save(make(1))
    assert Path(path).exists()
    assert found.newest()[0].round == 1


def test_errors_of_single_files_name_them(tmp_path):
    path = put(tmp_path, 1, b"rubbish")
    with pytest.raises(CheckpointError, match=r"round-000001\.npz: not a whole checkpoint"):
        load_checkpoint(str(path))
    with pytest.raises(CheckpointError, match="missing"):
        load_checkpoint(str(tmp_path / "missing.npz"))


def test_an_unwritable_place_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = CheckpointStore(str(tmp_path / "file"), "run", 2)
    with pytest.raises(StorageError, match=r"^storage\.path: can't write to .*file/run") as error:
        found.check_writable()
    assert "\n" not in str(error.value)
    with pytest.raises(StorageError, match="round 3 could not be written") as error:
        found.save(make())
    assert "\n" not in str(error.value)


def test_an_unknown_kind_of_place_is_one_clear_line():
    with pytest.raises(StorageError, match=r"storage\.path = 'nonsense://x'") as error:
        CheckpointStore("nonsense://x", "run", 2)
    assert "\n" not in str(error.value)


def test_a_writing_that_fails_leaves_the_earlier_checkpoints(tmp_path, monkeypatch):
    found = store(tmp_path, keep=1)
    found.save(make(1))

    def full(stream, checkpoint):
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("raygf.storage.checkpoint.write_archive", full)
        with pytest.raises(StorageError, match=r"round 2 could not be written .* No space left") as error:
            found.save(make(2))
    assert "earlier checkpoints stand" in str(error.value)
    assert found.rounds() == [1]
    assert same(found.load(1), make(1))
    found.save(make(2))  # the leftover part is no obstacle
    assert found.rounds() == [2]


def test_a_reader_never_sees_a_part(tmp_path, monkeypatch):
    """While the archive is written, the folder shows what it showed before."""
    found, seen = store(tmp_path), []
    found.save(make(1))

    def spy(stream, checkpoint):
        write_archive(stream, checkpoint)
        seen.append(CheckpointStore(str(tmp_path), "run", 2).rounds())

    monkeypatch.setattr("raygf.storage.checkpoint.write_archive", spy)
    found.save(make(2))
    assert seen == [[1]]
    assert found.rounds() == [1, 2]


DTYPES = st.sampled_from(["?", "i1", "u1", "i2", "i4", "i8", "u8", "f2", "f4", "f8", "c8", ">f4", ">i8"])
ARRAYS = DTYPES.flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TAGS = st.text("abc./0é-", min_size=1, max_size=6)
FREE = st.text(max_size=5).filter(lambda name: name not in ("format", "round", "arrays"))


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    vector = draw(arrays.arrays("f4", st.integers(0, 30)))
    named = st.dictionaries(TAGS, ARRAYS | ARRAYS.map(np.asfortranarray), max_size=3)
    meta = draw(st.dictionaries(FREE, JSON, max_size=3))
    return Checkpoint(draw(st.integers(0, 999_999)), NetworkState(vector, draw(named)), draw(named), meta)


def written(checkpoint: Checkpoint) -> bytes:
    stream = io.BytesIO()
    write_archive(stream, checkpoint)
    return stream.getvalue()


def read(content: bytes) -> Checkpoint:
    return read_archive(io.BytesIO(content))


def listed(checkpoint: Checkpoint) -> dict[str, tuple[Any, ...]]:
    """All arrays of ``checkpoint`` down to their bits."""
    parts = {"vector": checkpoint.network.vector}
    parts |= {f"b/{name}": array for name, array in checkpoint.network.buffers.items()}
    parts |= {f"m/{name}": array for name, array in checkpoint.method.items()}
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in parts.items()}


@settings(deadline=None, derandomize=True, max_examples=60)
@given(checkpoints())
def test_an_archive_comes_back_bit_by_bit(checkpoint: Checkpoint) -> None:
    again = read(written(checkpoint))
    assert again.round == checkpoint.round
    assert listed(again) == listed(checkpoint)
    assert {name: again.meta[name] for name in checkpoint.meta} == checkpoint.meta


@settings(deadline=None, derandomize=True, max_examples=150)
@given(checkpoints(), st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.booleans())
def test_one_changed_byte_is_noticed_or_harmless(
    checkpoint: Checkpoint, place: float, mask: int, late: bool
) -> None:
    """Half of the changes hit the directory at the end, which has no checksum of its own."""
    content = bytearray(written(checkpoint))
    start = content.index(b"PK\x01\x02") if late else 0
    content[start + int(place * (len(content) - start))] ^= mask
    assert_noticed_or_harmless(bytes(content), checkpoint)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(checkpoints(), st.floats(0, 1), st.floats(0, 1))
def test_missing_bytes_are_noticed_or_harmless(checkpoint: Checkpoint, one: float, other: float) -> None:
    content = written(checkpoint)
    first, last = sorted((int(one * len(content)), int(other * len(content))))
    assert_noticed_or_harmless(content[:first] + content[last:], checkpoint)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(checkpoints(), st.floats(0, 1, exclude_max=True))
def test_a_shorter_file_is_always_noticed(checkpoint: Checkpoint, share: float) -> None:
    content = written(checkpoint)
    with pytest.raises(CheckpointError):
        read(content[: int(share * len(content))])


def assert_noticed_or_harmless(content: bytes, checkpoint: Checkpoint) -> None:
    """Nothing but CheckpointError, and no other numbers."""
    try:
        again = read(content)
    except CheckpointError as error:
        assert "\n" not in str(error)
        return
    assert listed(again) == listed(checkpoint) and again.round == checkpoint.round
