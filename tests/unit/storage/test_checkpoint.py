"""Checkpoints: bit by bit, whole or not at all, and nothing that is damaged or malicious gets in."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from raygf.errors import CheckpointError, StorageError
from raygf.storage.checkpoint import Checkpoint, CheckpointStore, load_checkpoint, read_archive, write_archive
from raygf.training.network import NetworkState

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
def checkpoints(draw):
    vector = draw(arrays.arrays("f4", st.integers(0, 30)))
    named = st.dictionaries(TAGS, ARRAYS | ARRAYS.map(np.asfortranarray), max_size=3)
    meta = draw(st.dictionaries(FREE, JSON, max_size=3))
    return Checkpoint(draw(st.integers(0, 999_999)), NetworkState(vector, draw(named)), draw(named), meta)


def written(checkpoint):
    stream = io.BytesIO()
    write_archive(stream, checkpoint)
    return stream.getvalue()


def read(content):
    return read_archive(io.BytesIO(content))


def listed(checkpoint):
    """All arrays of ``checkpoint`` down to their bits."""
    parts = {"vector": checkpoint.network.vector}
    parts |= {f"b/{name}": array for name, array in checkpoint.network.buffers.items()}
    parts |= {f"m/{name}": array for name, array in checkpoint.method.items()}
    return {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in parts.items()}


def make(round=3):
    vector = np.linspace(-1, 1, 96, dtype=np.float32)
    buffers = {"bn.running_mean": np.ones(4, np.float32), "bn.n": np.array(round)}
    method = {"eta": np.full((3, 57), 0.25, np.float32), "adam_steps": np.array(7)}
    return Checkpoint(round, NetworkState(vector, buffers), method, {"config": {"lr": 0.1}, "run_id": "ä"})


def store(tmp_path, keep=2):
    found = CheckpointStore(str(tmp_path), "run", keep)
    found.check_writable()
    return found


def put(tmp_path, round, content):
    path = tmp_path / "run" / f"round-{round:06d}.npz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def archive(**members):
    stream = io.BytesIO()
    np.savez(stream, **members)
    return stream.getvalue()


def test_round_trip_is_exact(tmp_path):
    path = store(tmp_path).save(make())
    assert path == f"{tmp_path}/run/round-000003.npz"
    for loaded in (store(tmp_path).load(3), load_checkpoint(path), store(tmp_path).newest()[0]):
        assert listed(loaded) == listed(make())
        assert loaded.meta["config"] == {"lr": 0.1} and loaded.meta["run_id"] == "ä"


def test_path_may_be_a_uri(tmp_path):
    found = CheckpointStore(f"file://{tmp_path}", "run", 2)
    found.check_writable()
    path = found.save(make())
    assert path == f"file://{tmp_path}/run/round-000003.npz"
    assert listed(load_checkpoint(path)) == listed(make())
    assert listed(load_checkpoint(f"{tmp_path}/run/round-000003.npz")) == listed(make())


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_only_the_newest_are_kept(tmp_path, keep):
    """By their numbers; other files are left alone, and one that is there is replaced."""
    found = store(tmp_path, keep)
    others = ["round-000009.npz.part", "round-12.npz", "notes.txt", "xround-000008.npz"]
    for name in (*others, "round-000003.npz"):
        (tmp_path / "run" / name).write_bytes(b"x")
    for round in (1, 2, 3, 4, 10):
        found.save(make(round))
    assert found.rounds() == [1, 2, 3, 4, 10][-keep:]
    newest, notes = found.newest()
    assert listed(newest) == listed(make(10)) and notes == ()
    assert listed(found.load(10)) == listed(make(10))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *others,
        *(f"round-{round:06d}.npz" for round in found.rounds()),
    }


def test_no_checkpoints(tmp_path):
    found = CheckpointStore(str(tmp_path), "nothing", 2)
    assert found.rounds() == []
    assert found.newest() == (None, ())
    with pytest.raises(CheckpointError, match=r"round-000001\.npz"):
        found.load(1)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(checkpoints())
def test_an_archive_comes_back_bit_by_bit(checkpoint):
    again = read(written(checkpoint))
    assert again.round == checkpoint.round
    assert listed(again) == listed(checkpoint)
    assert {name: again.meta[name] for name in checkpoint.meta} == checkpoint.meta


@settings(deadline=None, derandomize=True, max_examples=150)
@given(checkpoints(), st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.booleans())
def test_one_changed_byte_is_noticed_or_harmless(checkpoint, place, mask, late):
    """Half of the changes hit the directory at the end, which has no checksum of its own."""
    content = bytearray(written(checkpoint))
    start = content.index(b"PK\x01\x02") if late else 0
    content[start + int(place * (len(content) - start))] ^= mask
    assert_noticed_or_harmless(bytes(content), checkpoint)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(checkpoints(), st.floats(0, 1), st.floats(0, 1))
def test_missing_bytes_are_noticed_or_harmless(checkpoint, one, other):
    """At the end they are always noticed."""
    content = written(checkpoint)
    first, last = sorted((int(one * len(content)), int(other * len(content))))
    assert_noticed_or_harmless(content[:first] + content[last:], checkpoint)
    if first < len(content):
        with pytest.raises(CheckpointError):
            read(content[:first])


def assert_noticed_or_harmless(content, checkpoint):
    """Nothing but CheckpointError, and no other numbers."""
    try:
        again = read(content)
    except CheckpointError as error:
        assert "\n" not in str(error)
        return
    assert listed(again) == listed(checkpoint) and again.round == checkpoint.round


def test_a_shortened_array_is_noticed():
    """Damage in an array's header makes NumPy read less; zip's checksum is only looked at after all bytes."""
    vector = np.zeros(90_000, np.float32)
    whole = bytearray(archive(meta=np.array(json.dumps({"format": 1, "round": 1})), vector=vector))
    place = whole.index(b"(90000,)") + 1
    whole[place] ^= ord("9") ^ ord("1")
    with pytest.raises(CheckpointError):
        read_archive(io.BytesIO(bytes(whole)))


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


def test_damaged_newest_ones_are_passed_over_with_a_note(tmp_path):
    found = store(tmp_path, keep=9)
    found.save(make(1))
    put(tmp_path, 2, b"")
    put(tmp_path, 3, b"rubbish")
    newest, notes = found.newest()
    assert newest.round == 1
    assert ["round-000003.npz" in notes[0], "round-000002.npz" in notes[1]] == [True, True]
    assert all(note.endswith("; trying the one before") for note in notes)
    put(tmp_path, 1, b"x")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*/run can be read: .*round-000003\.npz"):
        found.newest()


def test_damaged_later_ones_do_not_crowd_out_what_is_saved_now(tmp_path):
    """A run that had to start over keeps the checkpoints that it writes."""
    found = store(tmp_path, keep=1)
    for round in (7, 8):
        put(tmp_path, round, b"rubbish")
    assert Path(found.save(make(1))).exists()
    assert found.newest()[0].round == 1


def test_an_unwritable_place_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = CheckpointStore(str(tmp_path / "file"), "run", 2)
    with pytest.raises(StorageError, match=r"^storage\.path: can't write to .*file/run") as error:
        found.check_writable()
    assert "\n" not in str(error.value)
    with pytest.raises(StorageError, match="round 3 could not be written") as error:
        found.save(make())
    assert "\n" not in str(error.value)
