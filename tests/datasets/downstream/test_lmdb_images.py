"""Splits that lie as LMDBs, against the same images in class folders."""

import multiprocessing
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
import torch

from bamboo.cli.errors import DataError, UserError
from bamboo.cli.main import main
from bamboo.datasets.augment.crops import EvalView
from bamboo.datasets.downstream.lmdb_images import open_lmdb_images
from bamboo.datasets.downstream.sets import OpenedSplit, open_both, open_set
from bamboo.datasets.stores import ImageStore
from bamboo.datasets.stream.batches import EvalBatches
from bamboo.datasets.stream.loader import load_batches

ImageBytes = Callable[..., bytes]

CLASSES = ("bird", "cat", "dog")


@pytest.fixture
def folders(tmp_path: Path, image_bytes: ImageBytes) -> Path:
    """Class folders: train (4 a class) and test (2 of birds and dogs, none of cats)."""
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(CLASSES):
            for number in range(0 if split == "test" and name == "cat" else count):
                path = tmp_path / "folders" / split / name / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(image_bytes(100 * label + 10 * count + number, (20, 16)))
    return tmp_path / "folders"


def as_ours(folders: Path, root: Path) -> None:
    """Packs both splits into LMDBs with `bamboo shards pack`."""
    (root.parent / "names").write_text("\n".join(CLASSES) + "\n")
    for split in ("train", "test"):
        options = ["--to", "lmdb", "--out", f"{root}/{split}.lmdb", "--processes", "1"]
        assert main(["shards", "pack", str(folders / split), *options]) == 0


def as_others(folders: Path, root: Path, *, subdir: bool = False) -> None:
    """Writes both splits with the lmdb library alone, as lone files."""
    root.mkdir()
    for split in ("train", "test"):
        with (
            lmdb.open(f"{root}/{split}.lmdb", map_size=1 << 24, subdir=subdir, lock=False) as environment,
            environment.begin(write=True) as t,
        ):
            for path in (folders / split).rglob("*.jpg"):
                t.put(path.relative_to(folders / split).as_posix().encode(), path.read_bytes())


def require_equal(one: OpenedSplit, other: OpenedSplit) -> None:
    """Asserts labels, class names, order and pixels of two splits equal."""
    assert one.labels.tolist() == other.labels.tolist()
    assert one.class_names == other.class_names
    for sample in range(len(one)):
        assert torch.equal(one.load(sample), other.load(sample))
        assert one.name(sample).endswith("/".join(Path(other.name(sample)).parts[-2:]))


@pytest.mark.parametrize("write", [as_ours, as_others])
@pytest.mark.parametrize("name", ["folder", "folder:own"])
def test_an_lmdb_is_the_same_split_as_class_folders(tmp_path: Path, folders: Path, write: Callable[[Path, Path], None], name: str) -> None:
    """Both splits from LMDBs of ours and of others against the folders they were made of; a class without test images too."""
    root = tmp_path / "own"
    write(folders, root)
    expected = open_both("folder", folders)
    for one, other in zip(open_both(name, root), expected, strict=True):
        assert one.layout.startswith("LMDBs")
        require_equal(one, other)
        again = pickle.loads(pickle.dumps(one))
        assert again.data_hash == one.data_hash
        require_equal(again, other)


def test_features_are_equal(tmp_path: Path, folders: Path) -> None:
    """Batches for a backbone from two forked workers, each with an LMDB of its own, after the parent has read: equal to the folders'."""
    as_ours(folders, tmp_path / "own")
    stores = [open_set("folder", root, "train").store for root in (tmp_path / "own", folders)]
    stores[0].load(0)
    view = EvalView(12, crop_fraction=1.0, interpolation="bilinear")
    ours, theirs = (
        [(batch.images.clone(), batch.labels.tolist()) for batch in load_batches(EvalBatches(store, view, 5), range(3), workers=2)]
        for store in stores
    )
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one[0], other[0])
        assert one[1] == other[1]


def first_pixels(store: ImageStore, results: "multiprocessing.Queue[list[int]]") -> None:
    """Puts the sum of each image's pixels, read in this process."""
    results.put([int(store.load(sample).sum()) for sample in range(len(store))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_forked_and_spawned_processes_read(tmp_path: Path, folders: Path, method: str) -> None:
    """A store in use here, handed to a process that was forked or spawned: the same pixels there, and here afterwards."""
    as_others(folders, tmp_path / "own")
    store = open_set("folder", tmp_path / "own", "train").store
    expected = [int(store.load(sample).sum()) for sample in range(len(store))]
    context = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=first_pixels, args=(store, results))  # type: ignore[attr-defined]  # typeshed has it on each context
    process.start()
    assert results.get(timeout=60) == expected
    process.join()
    assert [int(store.load(sample).sum()) for sample in range(len(store))] == expected


def test_threads_share_a_store(tmp_path: Path, folders: Path) -> None:
    """Eight threads that open and read at once: all pixels right, no error of a file opened twice."""
    as_others(folders, tmp_path / "own")
    store = open_set("folder", tmp_path / "own", "train").store
    fresh, sums = pickle.loads(pickle.dumps(store)), list[list[int]]()

    def read() -> None:
        sums.append([int(fresh.load(sample).sum()) for sample in range(len(fresh))])

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [[int(store.load(sample).sum()) for sample in range(len(store))]] * 8


def test_the_hash_follows_the_data(tmp_path: Path, folders: Path, image_bytes: ImageBytes) -> None:
    """Equal for equal images whoever copied the file; another image, of the same size, another hash; ours and others' alike."""
    hashes = []
    for number, write in enumerate((as_ours, as_others, as_ours, as_others)):
        if number == 2:
            victim = folders / "train" / "cat" / "0.jpg"
            victim.write_bytes(victim.read_bytes()[:-3] + b"\0\xff\xd9")
        root = tmp_path / f"{number}"
        write(folders, root)
        hashes.append(open_set("folder", root, "train").data_hash)
    assert len(set(hashes)) == 4
    assert open_set("folder", tmp_path / "0", "train").data_hash == hashes[0]


def test_what_is_wrong_with_a_split(tmp_path: Path, folders: Path) -> None:
    """No test split, a class that train lacks, images in no folder, a damaged file, a split that is its own test: each named."""
    root = tmp_path / "own"
    as_others(folders, root)
    whole = (root / "test.lmdb").read_bytes()
    (root / "test.lmdb").unlink()
    with pytest.raises(UserError, match=r"no test\.lmdb or val\.lmdb beside it"):
        open_set("folder", root, "test")
    (root / "val.lmdb").write_bytes(whole)
    assert len(open_set("folder", root, "test")) == 4
    (root / "test.lmdb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"test\.lmdb: "):
        open_set("folder", root, "test")
    (root / "train.lmdb").replace(root / "test.lmdb")
    (root / "val.lmdb").replace(root / "train.lmdb")
    with pytest.raises(UserError, match=r"class 'cat' is not one of the 2 classes of .*train\.lmdb"):
        open_set("folder", root, "test")
    (root / "text.lmdb").write_text("no LMDB, but long enough to be looked at")
    with pytest.raises(DataError, match=r"text\.lmdb: no LMDB"):
        open_lmdb_images(root / "text.lmdb", None)
    with lmdb.open(f"{root}/loose.lmdb", subdir=False, lock=False) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"a.jpg", next(folders.rglob("*.jpg")).read_bytes())
    with pytest.raises(DataError, match="1 of 1 images have no label"):
        open_lmdb_images(root / "loose.lmdb", None)
    (root / "test.lmdb").write_bytes((root / "train.lmdb").read_bytes())
    with pytest.raises(DataError, match="are the training images"):
        open_both("folder", root)
