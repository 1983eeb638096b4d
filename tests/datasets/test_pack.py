"""Packing: what lands in the shards, whatever happens on the way there."""

import itertools
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from bamboo.datasets.images import decode_rgb
from bamboo.datasets.index import hash_key, read_index
from bamboo.datasets.manifest import read_manifest
from bamboo.datasets.shards import Shards

Bamboo = Callable[..., tuple[int, str, str]]
ImageBytes = Callable[..., bytes]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_with_webdataset(folder: Path) -> list[dict[str, Any]]:
    urls = [str(folder / entry.name) for entry in read_manifest(folder).shards]
    return list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))


def test_webdataset_reads_every_sample(packed: Path, photo_folder: Path) -> None:
    """The webdataset library's own reading against the folder: every image once, pixels and labels equal."""
    samples = read_with_webdataset(packed)
    classes = [entry.name for entry in read_manifest(packed).classes]
    sources = sorted(str(path.relative_to(photo_folder)) for path in photo_folder.rglob("*.*"))
    assert sorted(sample["json"]["source"] for sample in samples) == sources
    for sample in samples:
        source = sample["json"]["source"]
        assert [classes[label] for label in sample["json"]["labels"]] == [source.rpartition("/")[0]]
        pixels = next(sample[name] for name in ("jpg", "png", "webp") if name in sample)
        assert (pixels == np.asarray(Image.open(photo_folder / source).convert("RGB"))).all()


def test_index_and_manifest_agree_with_the_tars(packed: Path) -> None:
    """Offsets, sizes and key hashes against Python's tarfile; pixels' sizes against the decoded images; 7 samples a shard."""
    index, shards = read_index(packed / "index.arrow"), Shards.open(packed)
    assert shards.shard_counts.tolist() == [7, 7, 7]
    sample = 0
    for number, entry in enumerate(shards.manifest.shards):
        with tarfile.open(packed / entry.name) as tar:
            for member in (m for m in tar if not m.name.endswith(".json")):
                assert (index.shard[sample], index.offset[sample], index.size[sample]) == (number, member.offset_data, member.size)
                assert index.key_hash[sample] == hash_key(member.name.split(".")[0])
                assert tuple(decode_rgb(shards.read(sample)).shape[1:]) == (index.height[sample], index.width[sample])
                sample += 1
    assert sample == len(index) == 21


def test_bytes_are_kept_and_other_formats_become_png(packed: Path, photo_folder: Path) -> None:
    """JPEG, PNG and WebP members are the very files; a BMP becomes a PNG of the same pixels, counted."""
    kept = 0
    for name in sorted(packed.glob("*.tar")):
        with tarfile.open(name) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name_, label in ((n, json.loads(data)) for n, data in members.items() if n.endswith(".json")):
            original, key = photo_folder / label["source"], name_.removesuffix(".json")
            suffix = "png" if original.suffix == ".bmp" else original.suffix[1:]
            if original.suffix == ".bmp":
                assert (decode_rgb(members[f"{key}.png"]) == decode_rgb(original.read_bytes())).all()
            else:
                assert members[f"{key}.{suffix}"] == original.read_bytes()
                kept += 1
    made_by = read_manifest(packed).made_by
    counts = [made_by[f"num_{change}"] for change in ("kept", "converted", "resized", "skipped")]
    assert counts == [kept, 1, 0, 0] == [20, 1, 0, 0]


def test_resize_shrinks_the_short_side_and_never_enlarges(
    photo_folder: Path, tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes
) -> None:
    """Sizes against round(long · N / short) by hand; images already small keep their bytes; orientation is applied."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (photo_folder / "plant" / "turned.jpg").write_bytes(image_bytes(1, (90, 60), exif=exif))
    (photo_folder / "plant" / "tiny.jpg").write_bytes(image_bytes(2, (5, 4)))
    code, text, _ = bamboo("pack", photo_folder, "--out", tmp_path / "o", "--resize", 24, "--quality", 80, "--shuffle", "none")
    assert code == 0
    assert "resized" in text
    shards = Shards.open(tmp_path / "o")
    sources = {sample["json"]["source"]: sample for sample in read_with_webdataset(tmp_path / "o")}
    assert sources["plant/turned.jpg"]["jpg"].shape == (36, 24, 3)
    assert sources["plant/tiny.jpg"]["jpg"].shape == (4, 5, 3)
    assert np.minimum(shards.index.width, shards.index.height).max() == 24
    assert shards.manifest.made_by["num_resized"] + shards.manifest.made_by["num_kept"] == 22


def test_shuffle_is_seeded_and_can_be_off(photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """Order of sources: one seed one order, another seed another, `none` the sorted paths."""

    def order(*options):
        assert bamboo("pack", photo_folder, "--out", tmp_path / "o", "--overwrite", "--processes", 1, *options)[0] == 0
        return [sample["json"]["source"] for sample in read_with_webdataset(tmp_path / "o")]

    default, other, unshuffled = order(), order("--shuffle", 1), order("--shuffle", "none")
    assert default == order("--shuffle", 0) != other
    assert unshuffled == sorted(default)


def test_bytes_per_shard_counts_source_bytes(photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """No shard holds more source bytes than asked for, and none could take the next sample too."""
    limit = 3000
    assert bamboo("pack", photo_folder, "--out", tmp_path / "o", "--bytes-per-shard", limit)[0] == 0
    sizes = {str(path.relative_to(photo_folder)): path.stat().st_size for path in photo_folder.rglob("*.*")}
    shards = [[], *([] for _ in read_manifest(tmp_path / "o").shards[1:])]
    samples = iter(read_with_webdataset(tmp_path / "o"))
    for shard, entry in zip(shards, read_manifest(tmp_path / "o").shards, strict=True):
        shard += [sizes[next(samples)["json"]["source"]] for _ in range(entry.num_samples)]
    assert all(sum(shard) <= limit or len(shard) == 1 for shard in shards)
    assert all(sum(shard) + following[0] > limit for shard, following in itertools.pairwise(shards))


def test_sparse_labels_with_confidences_arrive_in_index_and_json(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> None:
    """An ML-Images list against index rows and json members worked by hand."""
    (tmp_path / "a b.jpg").write_bytes(image_bytes(1))
    (tmp_path / "c.jpg").write_bytes(image_bytes(2))
    (tmp_path / "list").write_text("a b.jpg\t4:0.9\t1:1\nc.jpg\t2:1\n")
    assert bamboo("pack", tmp_path / "list", "--out", tmp_path / "o", "--shuffle", "none")[0] == 0
    index = read_index(tmp_path / "o" / "index.arrow")
    assert [index.labels_of(i).tolist() for i in (0, 1)] == [[4, 1], [2]]
    assert [index.confidences_of(i).tolist() for i in (0, 1)] == [[np.float16(0.9), 1], [1]]
    assert [sample["json"] for sample in read_with_webdataset(tmp_path / "o")] == [
        {"labels": [4, 1], "confidences": [0.9, 1.0], "source": "a b.jpg"},
        {"labels": [2], "source": "c.jpg"},
    ]


def test_an_empty_class_is_kept_and_named(photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """A class folder without images: a warning line naming it, and a class of no samples."""
    (photo_folder / "ghost").mkdir()
    code, _, errors = bamboo("pack", photo_folder, "--out", tmp_path / "o")
    assert code == 0
    assert "warning: 1 of 4 classes have no image: ghost" in errors
    assert [entry.name for entry in read_manifest(tmp_path / "o").classes] == ["animal/cat", "animal/dog", "ghost", "plant"]


def test_unreadable_images_fail_by_default_then_can_be_skipped(photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """fail: exit 1 naming file and reason, nothing half-written; skip: goes on from there, listed and counted."""
    out, victim = tmp_path / "o", photo_folder / "plant" / "photo 0.jpg"
    victim.write_bytes(victim.read_bytes()[:300])
    (photo_folder / "plant" / "photo 1.jpg").write_bytes(b"")
    code, _, errors = bamboo("pack", photo_folder, "--out", out, "--samples-per-shard", 3, "--processes", 1)
    assert code == 1
    assert "plant/photo" in errors
    assert "--unreadable skip" in errors
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]
    assert not (out / "dataset.json").exists()
    code, text, _ = bamboo("pack", photo_folder, "--out", out, "--samples-per-shard", 3, "--unreadable", "skip", "--processes", 1)
    assert code == 0
    assert "2 skipped" in text
    assert (read_manifest(out).num_samples, read_manifest(out).made_by["num_skipped"]) == (19, 2)
    lines = (out / "skipped.tsv").read_text().splitlines()
    assert sorted(line.split(" (")[0] for line in lines[1:]) == ["plant/photo 0.jpg\tdamaged image", "plant/photo 1.jpg\tempty file"]
    assert len(read_with_webdataset(out)) == 19


def test_missing_files_of_a_list(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> None:
    """A listed file that is not there: exit 1 before any work, with its name; skipped and counted when asked."""
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    (tmp_path / "list").write_text("a.jpg 0\ngone.jpg 0\n")
    code, _, errors = bamboo("pack", tmp_path / "list", "--out", tmp_path / "o")
    assert (code, (tmp_path / "o").exists()) == (1, False)
    assert "1 of 2 images are missing: gone.jpg" in errors
    assert bamboo("pack", tmp_path / "list", "--out", tmp_path / "o", "--unreadable", "skip")[0] == 0
    assert "gone.jpg\tcannot be read (No such file or directory)" in (tmp_path / "o" / "skipped.tsv").read_text()


def test_a_label_outside_the_class_list_stops_before_any_work(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> None:
    """Line, label and allowed range in the message, exit 2, and OUT is not even made."""
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    (tmp_path / "list").write_text("a.jpg 0\na.jpg 2\n")
    (tmp_path / "names").write_text("cat\ndog\n")
    code, _, errors = bamboo("pack", tmp_path / "list", "--out", tmp_path / "o", "--classes", tmp_path / "names")
    assert code == 2
    assert "line 2: label 2 is outside the class list; allowed: 0 to 1" in errors
    assert not (tmp_path / "o").exists()


def test_nothing_readable_is_a_failure(tmp_path: Path, bamboo: Bamboo) -> None:
    """A pool of damaged images only: exit 1 even with skip, and no dataset.json."""
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "x.jpg").write_bytes(b"<html>")
    code, _, errors = bamboo("pack", tmp_path / "in", "--out", tmp_path / "o", "--unreadable", "skip")
    assert code == 1
    assert "none of 1 images is readable" in errors
    assert not (tmp_path / "o" / "dataset.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples-per-shard", 5, "--bytes-per-shard", 5], "samples_per_shard and bytes_per_shard are both given"),
        (["--quality", 80], "quality=80: only resized images"),
        (["--quality", 800, "--resize", 5], "quality=800"),
        (["--name", "a/b"], "name='a/b'"),
        (["--samples-per-shard", 0], "samples_per_shard=0"),
        (["--shufle", 1], "did you mean 'shuffle'"),
        (["--subdir", "nowhere"], "--subdir=nowhere"),
    ],
)
def test_wrong_options_are_the_users_mistake(
    photo_folder: Path, tmp_path: Path, bamboo: Bamboo, options: Sequence[object], message: str
) -> None:
    """Each wrong option: exit 2, the setting and its value named, and nothing written."""
    code, _, errors = bamboo("pack", photo_folder, "--out", tmp_path / "o", *options)
    assert code == 2
    assert message in errors
    assert not (tmp_path / "o").exists()


def test_missing_and_empty_sources_and_an_out_inside_src(photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """No SRC, no images in it, OUT inside it: exit 2 and a sentence."""
    (tmp_path / "empty").mkdir()
    for src, out, message in (
        (tmp_path / "nowhere", tmp_path / "o", "no such file or folder"),
        (tmp_path / "empty", tmp_path / "o", "no images"),
        (photo_folder, photo_folder / "o", "lies inside SRC"),
        (photo_folder, photo_folder / "plant" / "photo 0.jpg" / "x", "lies inside SRC"),
    ):
        code, _, errors = bamboo("pack", src, "--out", out)
        assert code == 2
        assert message in errors
    assert not (tmp_path / "o").exists()


def test_dry_run_writes_nothing(photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """Counts of a dry run against the folder, which stays as it was."""
    code, text, _ = bamboo("pack", photo_folder, "--out", tmp_path / "o", "--samples-per-shard", 10, "--dry-run")
    assert code == 0
    assert "21 images of 3 classes" in text
    assert "3 shards" in text
    assert not (tmp_path / "o").exists()


def test_a_finished_folder_is_left_alone(packed: Path, photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """The same command again does nothing and says so; another plan is an error with its remedy; --overwrite replaces."""
    before = contents(packed)
    again = ("pack", photo_folder, "--out", packed, "--processes", 1, "--samples-per-shard")
    assert bamboo(*again, 7)[:2] == (0, f"{packed} is already packed from this source with these options: nothing to do\n")
    code, _, errors = bamboo(*again, 5)
    assert code == 2
    assert "--overwrite" in errors
    assert contents(packed) == before
    (packed / "mine.txt").write_text("stays")
    assert bamboo(*again, 20, "--overwrite")[0] == 0
    there = sorted(path.name for path in packed.iterdir())
    assert there == ["dataset.json", "index.arrow", "mine.txt", "shard-000000.tar", "shard-000001.tar"]


def test_shards_of_others_are_not_overwritten(photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """A tar of the same name in OUT that no plan knows: exit 2."""
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "shard-000007.tar").write_bytes(b"precious")
    code, _, errors = bamboo("pack", photo_folder, "--out", tmp_path / "o")
    assert code == 2
    assert "shard-000007.tar, which this pack did not write" in errors
    assert contents(tmp_path / "o") == {"shard-000007.tar": b"precious"}


def test_names_that_are_no_text_are_packed(photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """File and folder names that are not UTF-8, or hold a line break: packed, and printed as one line where they are skipped."""
    odd = Path(os.fsdecode(os.fsencode(photo_folder) + b"/cr\xe8me"))
    odd.mkdir()
    (odd / "x.jpg").write_bytes((photo_folder / "plant" / "photo 0.jpg").read_bytes())
    for name in (b"caf\xe9.jpg", b"two\nlines.jpg"):
        Path(os.fsdecode(os.fsencode(photo_folder / "plant") + b"/" + name)).write_bytes(b"broken")
    code, text, _ = bamboo("pack", photo_folder, "--out", tmp_path / "o", "--unreadable", "skip")
    assert code == 0, text
    assert read_manifest(tmp_path / "o").classes[2].name == "cr\\udce8me"
    assert sorted(line.split("\t")[0] for line in (tmp_path / "o" / "skipped.tsv").read_text().splitlines()[1:]) == [
        "plant/caf\\udce9.jpg",
        "plant/two\\nlines.jpg",
    ]
