"""From what the user named (a folder, an archive, a list) to a `Source`."""

from collections.abc import Sequence
from pathlib import Path

from ..cli.errors import UserError
from .archive_sources import archive_source, is_archive
from .class_list import ClassList
from .list_sources import list_source, looks_like_ml_images, ml_images_source
from .lmdb_files import DATA_NAME, is_lmdb
from .lmdb_source import lmdb_source
from .manifest import FILE_NAME as MANIFEST_NAME
from .shard_source import shard_source
from .sources import Format, Source, folder_source, printable


def open_source(
    src: Path,
    form: Format,
    subdir: str,
    root: Path | None,
    classes: ClassList | None,
    copy: Path,
    annotations: Path | None = None,
) -> Source:
    """Returns the images that `src` names; `copy` is where a compressed tar is decompressed to when it is packed.

    `auto` takes a folder with `data.mdb` or a file that begins as LMDB's do for an LMDB, a folder with `dataset.json` for shards, any
    other folder for a folder, a tar or zip for an archive, and any other file for a list, of ML-Images' form when its first line has a
    TAB or ends in `class:confidence`.

    Raises:
        UserError: when `src` is missing, is not of the given form, or an option does not belong to that form.
        DataError: for a damaged archive.
    """
    if not src.exists():
        raise UserError(f"SRC={src}: no such file or folder")
    kind = _kind(src) if form == "auto" else form
    _check(src, kind, subdir, root, annotations)
    if kind == "lmdb":
        return lmdb_source(src, subdir, annotations, classes)
    if kind == "shards":
        return shard_source(src, classes)
    if kind == "folder":
        return folder_source(_inside(src, subdir), classes)
    if kind == "archive":
        return archive_source(src, subdir, classes, copy)
    return (list_source if kind == "list" else ml_images_source)(src, root, classes)


def _kind(src: Path) -> Format:
    if is_lmdb(src):
        return "lmdb"
    if src.is_dir():
        return "shards" if (src / MANIFEST_NAME).is_file() else "folder"
    if is_archive(src):
        return "archive"
    return "ml-images" if looks_like_ml_images(src) else "list"


def _check(src: Path, kind: Format, subdir: str, root: Path | None, annotations: Path | None) -> None:
    if kind != "lmdb" and src.is_dir() != (kind in ("folder", "shards")):
        found = "a folder" if src.is_dir() else "a file"
        raise UserError(f"--format={kind}: {src} is {found}; use --format auto")
    if kind == "archive" and not is_archive(src):
        raise UserError(f"--format=archive: {src} is no tar, tar.gz, tar.bz2, tar.xz or zip")
    if kind == "lmdb" and not is_lmdb(src):
        raise UserError(f"--format=lmdb: {src} is neither a folder with {DATA_NAME} nor an LMDB file")
    if annotations is not None and kind != "lmdb":
        raise UserError(f"--annotations={annotations}: only for an LMDB, and {src} is read as {kind}; leave it out")
    if root is not None and kind not in ("list", "ml-images"):
        raise UserError(f"--root={root}: only for lists, and {src} is read as {kind}; leave it out")
    if subdir and kind in ("list", "ml-images", "shards"):
        remedy = "leave it out" if kind == "shards" else "leave it out, or use --root"
        raise UserError(f"--subdir={subdir}: only for folders, archives and LMDBs, and {src} is read as {kind}; {remedy}")
    if Path(subdir).is_absolute() or ".." in Path(subdir).parts:
        raise UserError(f"--subdir={subdir}: must be a relative path inside SRC, without `..`")


def _inside(src: Path, subdir: str) -> Path:
    folder = src / subdir
    if not folder.is_dir():
        there: Sequence[str] = sorted(path.name for path in src.iterdir() if path.is_dir())[:5]
        raise UserError(f"--subdir={subdir}: no such folder in {src}; it holds {', '.join(map(printable, there)) or 'no folders'}")
    return folder
