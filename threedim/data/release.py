"""The SRN ShapeNet release: where to download it, and how its zips are unpacked."""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import stat
import zipfile
import zlib

from etils import epath

from threedim.errors import ExistsError, MissingError, UserError
from threedim.files import check_regular, check_zip, new_folder
from threedim.progress import Progress

_REPOSITORY = "https://github.com/vsitzmann/scene-representation-networks"
_RECORD = ".unpacked_from"
# Zips of Windows' Explorer beyond 2 GB, among others, use methods that Python does not read.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
# What zipfile and the decoders raise on damaged bytes; bz2 raises an OSError without a number.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, UnicodeError)
_OTHER_METHODS = {9: "Deflate64", 93: "Zstandard", 95: "XZ", 96: "JPEG", 98: "PPMd", 99: "AES encryption"}


def find_split(source: epath.PathLike, split: str, unpack_to: epath.PathLike) -> epath.Path:
    """The folder of a released split: ``source/split``, or ``source/split.zip`` unpacked to ``unpack_to/split``.

    Raises:
      MissingError: if neither exists; explains what to download and where to put it.
    """
    folder = epath.Path(source) / split
    if folder.is_dir():
        return folder
    archive = folder.parent / f"{folder.name}.zip"
    if archive.exists():
        check_regular(archive)
        return unpack_zip(archive, epath.Path(unpack_to) / split)
    kind = "chairs" if split.startswith("chairs_") else "cars"
    wanted = ", ".join(f"{kind}_{part}.zip" for part in ("train", "val", "test"))
    raise MissingError(
        f"neither {folder} nor {archive} exists.\n"
        f"SRN ShapeNet (Sitzmann et al. 2019): open {_REPOSITORY}, follow the link to Google Drive under 'Data', "
        f"download {wanted}, and put them, zipped or unpacked, into {source} (config.data.source).\n"
        f"Your own objects: set config.data.source to their folder and config.data.train_split to ''."
    )


def unpack_zip(archive: epath.PathLike, folder: epath.PathLike) -> epath.Path:
    """Unpacks a zip into ``folder`` atomically, or reuses a folder unpacked from the same zip. Returns ``folder``.

    Missing parents are created. macOS's ``__MACOSX`` entries are ignored; backslashes in names separate folders.

    Raises:
      UserError: if the file is not a complete zip, is encrypted or compressed by a method that Python does not read, or
        an entry is a link or outside of ``folder``; nothing is written.
      ExistsError: if ``folder`` exists and was not unpacked from this zip.
    """
    archive, folder = epath.Path(archive), epath.Path(folder)
    with archive.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as opened:
                check_zip(opened)
                entries = _safe_entries(archive, opened.infolist())
                lines = [f"{entry.filename}\n{entry.file_size} {entry.CRC}\n" for entry in entries.values()]
                record = hashlib.sha256("".join(lines).encode()).hexdigest()
                if not folder.exists():
                    _unpack(opened, entries, archive, folder, record)
        except _DAMAGED as error:
            if isinstance(error, UserError) or getattr(error, "errno", None):  # of the disk
                raise
            hint = "Download it again; once a quota is used up, Google Drive sends a web page instead"
            raise UserError(f"{archive}: not a complete zip file ({error}). {hint}") from error
    path = folder / _RECORD
    if not path.exists() or path.read_text() != record:
        raise ExistsError(f"{folder} exists but was not unpacked from this {archive}; delete or rename it")
    return folder


def _safe_entries(archive: epath.Path, entries: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The files by their path in the target."""
    kept: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        # orig_filename: zipfile cuts names at a null byte and converts the system's separators.
        parts = re.split(r"[/\\]", entry.orig_filename)
        if parts[0] == "" or ".." in parts or ":" in parts[0] or "\0" in entry.orig_filename:
            raise UserError(f"{archive}: entry {entry.orig_filename!r} is outside of the target; nothing unpacked")
        mode = stat.S_IFMT(entry.external_attr >> 16)
        if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{archive}: entry {entry.orig_filename!r} is a link or a special file; nothing unpacked")
        if "__MACOSX" in parts or parts[-1] == "":
            continue
        name = "/".join(parts)
        if name in kept:
            raise UserError(f"{archive}: has two entries {name!r}; nothing unpacked")
        if entry.flag_bits & 1:
            raise UserError(f"{archive}: entry {name!r} is encrypted; unpack it yourself")
        if entry.compress_type not in _METHODS:
            method = f"method {entry.compress_type} ({_OTHER_METHODS.get(entry.compress_type, 'unknown')})"
            raise UserError(f"{archive}: compression {method} of {name!r} is not supported; unpack it yourself")
        kept[name] = entry
    if not kept:
        raise UserError(f"{archive}: contains no files")
    return kept


def _unpack(opened: zipfile.ZipFile, entries, archive: epath.Path, folder: epath.Path, record: str) -> None:
    total, desc = sum(entry.file_size for entry in entries.values()), f"unpacking {archive.name}, bytes"
    with new_folder(folder) as temporary, Progress(total, desc=desc) as bar:
        for name, entry in entries.items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(entry) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
                if sink.tell() != entry.file_size:
                    raise zipfile.BadZipFile(f"{name} has {sink.tell()} bytes instead of {entry.file_size}")
            bar.advance(entry.file_size)
        (temporary / _RECORD).write_text(record)
