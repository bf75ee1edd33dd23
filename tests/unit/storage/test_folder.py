"""Files of a run: whole or not at all, wherever they are."""

import errno
import os
import resource

import pytest

from raygf.errors import StorageError
from raygf.storage.folder import RunFolder, brief


@pytest.fixture(params=["path", "uri"])
def folder(tmp_path, request):
    made = RunFolder(str(tmp_path) if request.param == "path" else f"file://{tmp_path}", "run")
    made.create()
    return made


def test_what_is_written_is_read(folder):
    folder.write("a", b"one")
    folder.write("a", b"two")
    assert (folder.read("a"), folder.names()) == (b"two", ["a"])
    folder.delete("a")
    assert folder.names() == []
    with pytest.raises(FileNotFoundError):
        folder.read("a")


def test_only_the_first_creates(folder):
    assert folder.create_only("a", b"one") is True
    assert folder.create_only("a", b"two") is False
    assert folder.read("a") == b"one"


def test_so_it_is_where_files_can_not_be_created_exclusively(folder):
    folder.local = False
    test_only_the_first_creates(folder)
    test_what_is_written_is_read(folder)


def test_a_replacement_is_seen_when_it_is_whole_and_a_failure_leaves_the_old_one(folder):
    folder.write("a", b"old")
    with folder.replacing("a") as stream:
        stream.write(b"ne")
        assert folder.read("a") == b"old"
        stream.write(b"w")
    with pytest.raises(ValueError, match="trouble"), folder.replacing("a") as stream:
        stream.write(b"half of it")
        raise ValueError("trouble")
    assert (folder.read("a"), folder.names()) == (b"new", ["a"])


def test_a_full_disk_is_an_oserror_and_the_old_one_stands(tmp_path):
    """The kernel's own refusal to write more, through Arrow; a limit on files stands in for a small disk."""
    folder = RunFolder(str(tmp_path), "run")
    folder.create()
    folder.write("a", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(OSError) as caught, folder.replacing("a") as stream:
            for _ in range(8):
                stream.write(bytes(1 << 18))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert os.strerror(errno.EFBIG) in brief(caught.value)
    assert (folder.read("a"), folder.names()) == (b"old", ["a"])


def test_silence_is_counted_by_the_storage(tmp_path):
    folder = RunFolder(str(tmp_path), "run")
    folder.create()
    folder.write("a", b"x")
    assert 0 <= folder.silence_s("a") < 100
    old = (tmp_path / "run" / "a").stat().st_mtime - 1000
    os.utime(tmp_path / "run" / "a", (old, old))
    assert 1000 <= folder.silence_s("a") < 1100
    assert folder.silence_s("missing") == 0
    assert folder.names() == ["a"]


def test_places_are_shown_as_people_wrote_them(tmp_path):
    assert RunFolder(f"file://{tmp_path}/", "run").path("a") == f"file://{tmp_path}/run/a"
    assert RunFolder(str(tmp_path), "run").path("a") == f"{tmp_path}/run/a"


def test_an_unknown_kind_of_place_is_one_clear_line():
    with pytest.raises(StorageError, match=r"storage\.path = 'nonsense://x'") as caught:
        RunFolder("nonsense://x", "run")
    assert "\n" not in str(caught.value)


def test_what_is_appended_is_there_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    folder.create()
    for content in (b"one\n", b"two\n"):
        folder.append("a", content)
    assert folder.read("a") == b"one\ntwo\n"
    monkeypatch.setattr(folder, "local", False)  # as an object store, which has no end to write to
    for content in (b"one\n", b"two\n"):
        folder.append("b", content)
    assert folder.read("b") == b"one\ntwo\n"


def test_what_is_appended_to_a_disk_that_fills_up_leaves_no_part(tmp_path):
    folder = RunFolder(str(tmp_path), "run")
    folder.create()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, before[1]))
    try:
        folder.append("a", b"one\n")
        with pytest.raises(OSError, match="2 of 4 bytes written"):
            folder.append("a", b"two\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert folder.read("a") == b"one\n"
