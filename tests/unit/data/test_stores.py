"""Images in class folders, and in Parquet files that are read by row group."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_images import photographs, refused, write_folders, write_parquet

from raygf.data.stores import Part, ShardReader, index_folder, index_shards

FILES = photographs(15)
LABELS = [row % 3 for row in range(15)]


def put(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_classes_are_the_sorted_folders_and_files_are_sorted_within(tmp_path):
    kept = ["n01/z.png", "n02/a.jpeg", "n02/b.JPEG", "n10/ä ö.jpg", "n10/\udcff.webp"]
    for name in [*reversed(kept), "n02/.hidden.jpg", "n02/notes.txt", "stray.jpg", ".cache/a.jpg"]:
        put(tmp_path / "train" / name, name.encode(errors="surrogateescape"))
    store = index_folder(str(tmp_path), "train")
    assert store.class_names == ("n01", "n02", "n10")
    assert store.labels.tolist() == [0, 1, 1, 2, 2] and store.labels.dtype == np.int64
    assert [store.where(i) for i in range(5)] == [f"{tmp_path}/train/{name}" for name in kept]
    reader = pickle.loads(pickle.dumps(store)).open()
    assert [reader.read(i, 0).tobytes().decode(errors="surrogateescape") for i in range(5)] == kept


def test_test_images_have_the_training_classes(tmp_path):
    write_folders(tmp_path, 6, 0)
    put(tmp_path / "val" / "n03" / "a.jpg")
    store = index_folder(str(tmp_path), "val", ("n01", "n02", "n03"))
    assert store.labels.tolist() == [2] and store.where(0).endswith("val/n03/a.jpg")
    put(tmp_path / "val" / "n07" / "a.jpg")
    with refused("val/n07: no class of that name"):
        index_folder(str(tmp_path), "val", ("n01", "n02", "n03"))


def test_folders_without_images_are_named(tmp_path):
    with refused(f"{tmp_path}/train: can't be listed", "--data.path"):
        index_folder(str(tmp_path), "train")
    put(tmp_path / "train" / "a.jpg")
    with refused("train: no class folders; images must lie in"):
        index_folder(str(tmp_path), "train")
    put(tmp_path / "train" / "n01" / "a.txt")
    put(tmp_path / "train" / "n02" / "a.jpg")
    with refused("train/n01: no images; expected files ending in .jpeg, .jpg"):
        index_folder(str(tmp_path), "train")
    (tmp_path / "val" / "n01").mkdir(parents=True)
    with refused("val: no images"):
        index_folder(str(tmp_path), "val", ("n01",))


@pytest.mark.parametrize("column", ["label", "image"])
def test_columns_that_are_there_twice_are_named(tmp_path, column):
    table = pa.table({"image": FILES[:2], "label": [1, 0]})
    pq.write_table(table.append_column(column, table[column]), tmp_path / "train.parquet")
    with refused("train.parquet: ", f'Field "{column}" exists 2 times'):
        index_shards([tmp_path / "train.parquet"]).open().read(0, 0)


@pytest.fixture
def store(tmp_path):
    """Row groups of 4, 4, 1 and 4, 2 rows, between them a file with one of no rows."""
    parts = (slice(0, 9), slice(0, 0), slice(9, 15))
    return index_shards(
        [
            write_parquet(tmp_path / f"train-{number}.parquet", FILES[part], LABELS[part], group=4)
            for number, part in enumerate(parts)
        ]
    )


def test_the_index_of_some_files(store, tmp_path):
    assert store.labels.tolist() == LABELS and store.labels.dtype == np.int64
    assert store.units.tolist() == [0] * 4 + [1] * 4 + [2] + [4] * 4 + [5] * 2
    assert store.where(8) == f"{tmp_path}/train-0.parquet: row 8"
    assert store.where(9) == f"{tmp_path}/train-2.parquet: row 0"
    assert store.where(14) == f"{tmp_path}/train-2.parquet: row 5"
    assert sum(map(len, FILES)) < store.bytes_per_image * 15 < 2 * sum(map(len, FILES))
    part = Part.of(store).take(np.array([1, 8, 14]))
    assert len(part) == 3 and part.labels.tolist() == [1, 2, 2] and part.units.tolist() == [0, 2, 5]


def test_every_row_in_any_order(store):
    reader = pickle.loads(pickle.dumps(store)).open()
    for row in np.random.default_rng(0).permutation(15):
        file = reader.read(int(row), int(store.units[row]))
        assert file.tobytes() == FILES[row] and file.flags.writeable


def recorded(monkeypatch, kind, name):
    """The only argument of every call of this method from now on."""
    original, given = getattr(kind, name), []

    def method(self, *args, **named):
        given.extend([*args, *named.values()])
        return original(self, *args, **named)

    monkeypatch.setattr(kind, name, method)
    return given


def test_a_row_group_is_read_once_a_visit_and_kept_until_it_ends(store, monkeypatch):
    read = recorded(monkeypatch, ShardReader, "_read_unit")
    reader = store.open()
    for row in (0, 3, 9, 1):
        reader.read(row, int(store.units[row]))
    assert read == [0, 4]
    reader.leave([0, 17])
    reader.read(9, 4)
    reader.read(2, 0)
    reader.read(2, 70)  # another visit of the same row group
    assert read == [0, 4, 0, 0]


def test_only_labels_are_read_for_the_index(tmp_path, monkeypatch):
    asked = recorded(monkeypatch, pq.ParquetFile, "read")
    index_shards([write_parquet(tmp_path / "train.parquet", FILES, LABELS)])
    assert asked == [["label"]]


COARSE = {"coarse_label": pa.array([0, 0])}
HUB = {"fine_label": ["apple", "bear"], "coarse_label": ["fruit", "animal"]}


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ({}, ()),
        ({"names": "a, b"}, ("a", "b")),
        ({"plain": True, "columns": ("image", "kind")}, ()),
        ({"columns": ("img", "fine_label"), "hub_names": HUB, **COARSE}, ("apple", "bear")),
        ({"plain": True, "columns": ("img", "label"), **COARSE}, ()),
        ({"hub_names": {"label": [3, "x"]}}, ("3", "x")),
        ({"hub_names": {"label": None}}, ()),
    ],
)
def test_layouts_of_the_hub(tmp_path, layout, names):
    for labels in ([1, 0], pa.array([1, 0], pa.uint8())):
        store = index_shards([write_parquet(tmp_path / "a.parquet", [FILES[0], None], labels, **layout)])
        assert store.labels.tolist() == [1, 0] and store.class_names == names
        reader = store.open()
        assert reader.read(0, 0).tobytes() == FILES[0] and reader.read(1, 0) is None


ONE = FILES[:1]
GOOD = {"image": FILES[:3], "label": [0, 1, 2]}
STRANGE = ("{", '{"info": 3}', "[" * 10**5, '{"info": {"features": {"label": {"names": 5}}}}')


@pytest.mark.parametrize(
    ("columns", "metadata", "text"),
    [
        ({"picture": ONE, "label": [0]}, {}, "no column 'image' or 'img' that is binary"),
        ({"image": ["a.png"], "label": [0]}, {}, "no column 'image' or 'img' that is binary"),
        ({"image": ONE, "label": ["a"]}, {}, "no label column 'label' or 'fine_label' of whole"),
        ({"image": ONE, "a": [0], "b": [0]}, {}, "no label column 'label' or 'fine_label' of whole"),
        ({"image": FILES[:3], "label": [0, None, 1]}, {}, "row 1 has no label; every row needs one"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int8())}, {}, "the split has no rows"),
        *((GOOD, {"huggingface": text}, "its class names can't be understood") for text in STRANGE),
        (GOOD, {"class_names": b"cat,\xff"}, "its class names can't be understood"),
    ],
)
def test_a_file_that_is_no_image_set_is_named(tmp_path, columns, metadata, text):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    with refused(f"{path}: {text}"):
        index_shards([path])


def test_files_must_agree_on_their_class_names(tmp_path):
    paths = [
        write_parquet(tmp_path / f"{number}.parquet", FILES[:3], LABELS[:3], names=names)
        for number, names in enumerate((None, "a,b,c", "a,b,c", "a,c,b"))
    ]
    assert index_shards(paths[:3]).class_names == ("a", "b", "c")
    with refused(f"{paths[3]}: its class names differ from those of {paths[1]}"):
        index_shards(paths)


def test_damaged_files_are_named(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", FILES, LABELS, group=4)
    store, whole = index_shards([path]), path.read_bytes()
    for content in (b"", b"PAR1 nothing PAR1", whole[: len(whole) // 2], whole[:-20]):
        path.write_bytes(content)
        with refused("train.parquet: not a whole Parquet file", "fetch it again"):
            index_shards([path])
    path.write_bytes(whole)
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    path.write_bytes(whole[:start] + b"\xff" * 200 + whole[start + 200 :])
    reader = store.open()
    assert reader.read(0, 0).tobytes() == FILES[0]
    with refused("train.parquet: row group 1: not a whole Parquet file"):
        reader.read(5, 1)
