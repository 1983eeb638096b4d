"""What is packed: folders, archives (hostile ones too), lists, ML-Images lists and class files."""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bamboo.cli.errors import DataError, UserError
from bamboo.datasets.class_list import read_class_list
from bamboo.datasets.open_source import open_source
from bamboo.datasets.sources import Format, Source

ImageBytes = Callable[..., bytes]


ML_IMAGES = Path(__file__).resolve().parents[3] / "shared" / "data" / "ml-images"
DICTIONARY = "dictionary_and_semantic_hierarchy.txt"


def opened(src: Path, form: Format = "auto", subdir: str = "", root: Path | None = None, classes: Path | None = None) -> Source:
    source = open_source(src, form, subdir, root, None if classes is None else read_class_list(classes), src.parent / "copy.tar")
    source.reader.prepare()
    return source


def names(source: Source) -> list[str]:
    return [entry.name for entry in source.classes]


def listed(tmp_path: Path, text: str, *files: str) -> Path:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"x")
    path = tmp_path / "list.txt"
    path.write_text(text)
    return path


def test_nested_folders_are_classes_by_relative_path(photo_folder: Path) -> None:
    """Class names, ids and labels against a hand-made tree; sorted as torchvision's ImageFolder sorts."""
    source = opened(photo_folder)
    assert names(source) == ["animal/cat", "animal/dog", "plant"]
    assert [record.labels for record in source.records] == [(0,)] * 8 + [(1,)] * 7 + [(2,)] * 6
    assert source.records[0].name == "animal/cat/photo 0.jpg"
    assert source.reader.read(source.records[0]) == (photo_folder / "animal/cat/photo 0.jpg").read_bytes()


def test_a_class_folder_inside_a_class_folder_has_it_as_parent(photo_folder: Path, image_bytes: ImageBytes) -> None:
    """`animal` with images of its own becomes the parent of `animal/cat` and `animal/dog`."""
    (photo_folder / "animal" / "some.JPG").write_bytes(image_bytes())
    source = opened(photo_folder)
    found = [(entry.name, entry.parent) for entry in source.classes]
    assert found == [("animal", None), ("animal/cat", 0), ("animal/dog", 0), ("plant", None)]


def test_what_is_no_image_is_left_out_and_said(photo_folder: Path, image_bytes: ImageBytes) -> None:
    """Hidden files, __MACOSX, other names: left out; unlabelled images and other files are noted."""
    (photo_folder / ".DS_Store").write_bytes(b"x")
    (photo_folder / "__MACOSX").mkdir()
    (photo_folder / "__MACOSX" / "a.jpg").write_bytes(b"x")
    (photo_folder / "plant" / "notes.txt").write_bytes(b"x")
    (photo_folder / "loose.jpg").write_bytes(image_bytes())
    source = opened(photo_folder)
    assert len(source.records) == 22
    assert next(record for record in source.records if record.name == "loose.jpg").labels == ()
    assert "1 files are not called like images" in source.notes[0]
    assert "1 images lie in no class folder" in source.notes[1]


def test_linked_class_folders_are_followed_and_circles_end(photo_folder: Path, tmp_path: Path, image_bytes: ImageBytes) -> None:
    """A link to a folder elsewhere is a class; a link back to the root is not walked again."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").write_bytes(image_bytes())
    (photo_folder / "linked").symlink_to(tmp_path / "elsewhere")
    (photo_folder / "circle").symlink_to(photo_folder)
    assert names(opened(photo_folder)) == ["animal/cat", "animal/dog", "linked", "plant"]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_an_archive_is_the_same_source_as_its_folder(photo_folder: Path, tmp_path: Path, kind: str) -> None:
    """Records, classes and bytes of a tar or zip, with the common top folder taken off, against the folder itself."""
    path = tmp_path / f"pool.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(photo_folder.rglob("*")):
                archive.write(file, Path("./top/photos") / file.relative_to(photo_folder))
    else:
        with tarfile.open(path, f"w:{kind[4:]}") as archive:
            archive.add(photo_folder, "./top/photos")
    ours, folder = opened(path, subdir="top/photos"), opened(photo_folder)
    assert names(ours) == names(folder)
    assert [(r.name, r.labels, r.size_bytes) for r in ours.records] == [(r.name, r.labels, r.size_bytes) for r in folder.records]
    assert ours.fingerprint() == folder.fingerprint()
    assert [ours.reader.read(r) for r in ours.records] == [folder.reader.read(r) for r in folder.records]
    assert opened(path, subdir="top/photos/animal").classes[0].name == "cat"
    with pytest.raises(UserError, match="--subdir=nowhere"):
        opened(path, subdir="nowhere")


def test_a_hostile_tar_is_harmless(tmp_path: Path, image_bytes: ImageBytes) -> None:
    """Members with `..`, absolute names, links and devices: left out with a note, and nothing appears on disk."""
    path, data = tmp_path / "pool" / "hostile.tar", image_bytes()
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name in ("ok/a.jpg", "../evil.jpg", "/tmp/evil.jpg", "ok/../../evil.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("ok/odd.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    before = sorted(tmp_path.rglob("*"))
    source = opened(path)
    assert [record.name for record in source.records] == ["ok/a.jpg"]
    assert [note.split(" (")[0] for note in source.notes] == [
        "3 members left out: absolute names or `..`",
        "2 members left out: links",
        "2 members left out: devices, pipes and sparse files",
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_hostile_zip_is_harmless(tmp_path: Path, image_bytes: ImageBytes) -> None:
    """A symbolic link, backslashes and `..` in a zip are left out with a note."""
    path = tmp_path / "hostile.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ok/a.jpg", image_bytes())
        archive.writestr("..\\evil.jpg", image_bytes())
        link = zipfile.ZipInfo("ok/link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    source = opened(path)
    assert [record.name for record in source.records] == ["ok/a.jpg"]
    assert len(source.notes) == 2


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_truncated_archive_is_an_error(photo_folder: Path, tmp_path: Path, kind: str) -> None:
    """A tar cut at 60 % of its length: DataError naming the archive."""
    path = tmp_path / f"pool.{kind}"
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
        archive.add(photo_folder, ".")
    os.truncate(path, path.stat().st_size * 6 // 10)
    with pytest.raises(DataError, match=f"pool.{kind}: not a whole tar"):
        opened(path)


def test_a_list_splits_from_the_right(tmp_path: Path) -> None:
    """`path label` with spaces in the path, blank lines and CRLF, against the records worked by hand."""
    path = listed(tmp_path, "a b/c 1.jpg 3\n\nd.jpg 0\r\n", "a b/c 1.jpg", "d.jpg")
    source = opened(path)
    assert [(record.name, record.labels, record.size_bytes) for record in source.records] == [("a b/c 1.jpg", (3,), 1), ("d.jpg", (0,), 1)]
    assert names(source) == ["0", "1", "2", "3"]


def test_a_list_is_relative_to_root(tmp_path: Path) -> None:
    """--root puts another folder before the paths; without it a file is marked as missing."""
    path = listed(tmp_path, "d.jpg 0\n", "images/d.jpg")
    assert opened(path, root=tmp_path / "images").records[0].size_bytes == 1
    assert opened(path).records[0].size_bytes == -1
    with pytest.raises(UserError, match=r"--root=.*no such folder"):
        opened(path, root=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 0\nb.jpg 2\n", r"line 2: label 2 is outside the class list; allowed: 0 to 1, the 2 classes of .*names.txt"),
        ("a.jpg -1\n", r"line 1: label -1 is outside the class list"),
        ("a.jpg cat\n", r"line 1: 'a.jpg cat' is not `path label`"),
        ("", "empty"),
        ("a\0b 1\n", "line 1 holds binary data"),
    ],
)
def test_a_wrong_list_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    """Each kind of wrong line: the error names list, line and allowed range."""
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=message):
        opened(listed(tmp_path, text), "list", classes=tmp_path / "names.txt")


def test_ml_images_lines(tmp_path: Path) -> None:
    """TAB and space separated pairs, missing confidences, doubled classes and no labels, against hand-worked records."""
    path = listed(tmp_path, "a.jpg\t940:0.8\t17:1\nn0/b c.JPEG 5:1 2\nd.jpg\t3:0.5\t3:0.9\ne.jpg\n")
    source = opened(path)
    found = [(record.name, record.labels, record.confidences) for record in source.records]
    assert found == [("a.jpg", (940, 17), (0.8, 1.0)), ("n0/b c.JPEG", (5, 2), None), ("d.jpg", (3,), (0.9,)), ("e.jpg", (), None)]
    assert len(source.classes) == 941


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.jpg\t1:1.5", "line 1: class 1 has confidence 1.5; allowed: 0 to 1"),
        ("a.jpg\t1:nan", "confidence nan"),
        ("a.jpg\tone:1", "'one:1' is not `class:confidence`"),
        ("a.jpg\t1:x", "'1:x' is not"),
        ("https://host/a.jpg\t1:1", "is a URL; download"),
        ("a.jpg\t-1:1", "label -1; allowed: 0 to"),
    ],
)
def test_a_wrong_ml_images_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    """Malformed pairs, confidences and URLs: the error names the line and what is allowed."""
    with pytest.raises(UserError, match=message):
        opened(listed(tmp_path, line + "\n"))


@pytest.mark.skipif(not ML_IMAGES.is_dir(), reason=f"ML-Images' own files are not at {ML_IMAGES}")
def test_ml_images_own_files() -> None:
    """The published list and dictionary against the statistics in ML-Images' reference: 100 rows, 827 labels, 11,166 classes, 4 roots."""
    source = opened(ML_IMAGES / "train_im_list_tiny.txt", classes=ML_IMAGES / DICTIONARY)
    assert len(source.records) == 100
    assert sum(len(record.labels) for record in source.records) == 827
    confidences = [c for record in source.records for c in record.confidences or [1.0] * len(record.labels)]
    assert (confidences.count(1.0), confidences.count(0.9), confidences.count(0.8)) == (519, 135, 173)
    assert len(source.classes) == 11166
    assert sum(entry.parent is None for entry in source.classes) == 4
    assert (source.classes[41].name, source.classes[41].parent) == ("prickly pear", 33)


def test_class_file_forms(tmp_path: Path) -> None:
    """Plain names, `key<TAB>name`, and ML-Images' dictionary with a name that stands twice, against hand-worked ids."""
    plain, keyed, dictionary = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    plain.write_text("cat\ndog\n\n")
    keyed.write_text("n1\tgoldfish, carp\nn2\tcrane\n")
    header = "category_index\tcategory_id\tindex_of_parent_category\tcategory name\n"
    dictionary.write_text(header + "1\tn2\t0\thead\n0\tn1\t-1\tthing\n2\tn3\t0\thead\n")
    assert read_class_list(plain).find("dog", "") == 1
    assert [read_class_list(keyed).find(name, "") for name in ("n2", "crane", "goldfish, carp")] == [1, 1, 0]
    classes = read_class_list(dictionary)
    assert [(entry.name, entry.parent) for entry in classes.entries] == [("thing", None), ("head", 0), ("head", 0)]
    assert classes.find("n3", "") == 2
    with pytest.raises(UserError, match=r"'head' stands more than once"):
        classes.find("head", "list")
    with pytest.raises(UserError, match=r"'dgo' is not one of the 2 classes of .*did you mean 'dog'"):
        read_class_list(plain).find("dgo", "list")


@pytest.mark.parametrize(("text", "message"), [("", "empty"), ("a\n\nb\n", "line 2 is blank")])
def test_a_wrong_class_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    """An empty class file and a blank line: named."""
    (tmp_path / "names").write_text(text)
    with pytest.raises(UserError, match=message):
        read_class_list(tmp_path / "names")


def test_folders_must_be_in_the_class_file(photo_folder: Path, tmp_path: Path) -> None:
    """A class file gives the ids; a folder that it does not name is an error."""
    (tmp_path / "names").write_text("plant\nanimal/dog\nanimal/cat\nunused\n")
    source = opened(photo_folder, classes=tmp_path / "names")
    assert names(source) == ["plant", "animal/dog", "animal/cat", "unused"]
    assert source.records[0].labels == (2,)
    (tmp_path / "names").write_text("plant\nanimal/dog\n")
    with pytest.raises(UserError, match="class 'animal/cat' is not one of the 2 classes"):
        opened(photo_folder, classes=tmp_path / "names")


def test_options_of_another_form_are_errors(photo_folder: Path, tmp_path: Path) -> None:
    """No setting is ignored: --root with a folder, --subdir with a list, a format that does not fit, `..`."""
    path = listed(tmp_path, "d.jpg 0\n", "d.jpg")
    for message, options in (
        ("--root=", {"src": photo_folder, "root": tmp_path}),
        ("--subdir=x", {"src": path, "subdir": "x"}),
        ("--format=archive", {"src": photo_folder, "form": "archive"}),
        ("--format=archive", {"src": path, "form": "archive"}),
        ("--subdir=../x", {"src": photo_folder, "subdir": "../x"}),
        ("it holds animal, plant", {"src": photo_folder, "subdir": "nowhere"}),
        ("no such file or folder", {"src": tmp_path / "nowhere"}),
    ):
        with pytest.raises(UserError, match=message):
            opened(**options)
