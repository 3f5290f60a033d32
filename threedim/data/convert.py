"""Converts object folders to ArrayRecord with a TFDS builder, without TensorFlow. `records` reads the result."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import writer as tfds_writer

from threedim import arrays
from threedim import settings as settings_lib
from threedim.data import objects, records
from threedim.data.records import DatasetInfo, SplitInfo
from threedim.data.views import BadObjectError, ObjectViews, ReadSettings
from threedim.errors import ExistsError, UserError
from threedim.files import new_folder
from threedim.progress import Progress

# TFDS keeps one shard in memory while it writes it.
_SHARD_BYTES = 256 << 20


def prepare(
    splits: Mapping[str, Sequence[epath.PathLike]],
    out_dir: epath.PathLike,
    *,
    on_bad: str = "raise",
    description: dict | None = None,
    settings: ReadSettings | None = None,
) -> DatasetInfo:
    """Converts folders of views to records, or reuses records made from the same folders.

    Args:
      splits: object folders by split, in the order of the records. Names are unique within a split.
      out_dir: new folder on a local or mounted disk. It appears when the conversion is complete.
      on_bad: "raise" stops at the first invalid object; "skip" leaves invalid objects out and lists them.
      description: JSON-like, what the folders were found by; defaults to the list of folders. Existing records are
        reused if their description is equal.
      settings: how the folders are read; the defaults of `ReadSettings` if None.

    Raises:
      BadObjectError: at the first invalid object, if ``on_bad`` is "raise".
      UserError: if ``out_dir`` holds records of another description, or nothing is left to convert.
    """
    if on_bad not in ("raise", "skip"):
        raise UserError(f"on_bad must be 'raise' or 'skip', got {on_bad!r}")
    records.check_supported()
    out_dir, settings = epath.Path(out_dir), settings or ReadSettings()
    if "://" in str(out_dir):
        raise UserError(f"{out_dir}: ArrayRecord needs a local or mounted disk; choose another config.data.dir")
    splits = {name: [epath.Path(folder) for folder in folders] for name, folders in splits.items()}
    if description is None:
        description = {"splits": {name: [str(folder) for folder in folders] for name, folders in splits.items()}}
        description |= settings.changed()
    existing = find_prepared(out_dir, description, on_bad=on_bad, strict=settings.strict)
    if existing is not None:
        return existing
    for split, folders in splits.items():
        if not folders:
            raise UserError(f"split {split!r} has no object")
        name, count = collections.Counter(folder.name for folder in folders).most_common(1)[0]
        if count > 1:
            same = ", ".join(str(folder) for folder in folders if folder.name == name)
            raise UserError(f"split {split!r} has {count} objects called {name!r}: {same}; rename all but one")
    with new_folder(out_dir) as temporary, Progress(sum(map(len, splits.values())), desc="preparing objects") as bar:
        builder = _ObjectsBuilder(splits, settings, on_bad, bar, data_dir=temporary, file_format="array_record")
        builder.download_and_prepare()
        info = builder.dataset_info(description)
        (temporary / records.METADATA).write_text(json.dumps(dataclasses.asdict(info), indent=1))
    said = [f"left out: {line}" for line in info.skipped]
    said += [arrays.listed([f"warning: {line}" for line in info.warnings], "\n")] if info.warnings else []
    said += [f"not read: {name} ({count} objects)" for name, count in builder.unread.most_common()]
    print(*said, f"prepared {out_dir}: {info.summary()}", sep="\n")
    return info


def find_prepared(
    out_dir: epath.PathLike, description: dict, *, on_bad: str = "raise", strict: bool = False
) -> DatasetInfo | None:
    """Information about finished records made from ``description``; None if the folder does not exist.

    Raises:
      ExistsError: if the folder holds something other than records.
      UserError: if the records were made from another description (lists the differences), leave out objects although
        ``on_bad`` is "raise", or came with warnings although ``strict``.
    """
    out_dir = epath.Path(out_dir)
    if not out_dir.exists():
        return None
    if not (out_dir / records.METADATA).exists():
        raise ExistsError(f"{out_dir} exists but has no {records.METADATA}; choose another config.data.dir")
    info = records.read_info(out_dir)
    remedy = "Choose another config.data.dir, or delete the folder to convert again."
    changes = settings_lib.differences(info.description, settings_lib.plain(description))
    settings_lib.refuse(f"{out_dir} holds records made with other settings", changes, remedy)
    if info.skipped and on_bad == "raise":
        left_out = f"{len(info.skipped)} bad objects (the first: {info.skipped[0]})"
        raise UserError(f"{out_dir} leaves out {left_out}, but config.data.on_bad is 'raise'. {remedy}")
    if info.warnings and strict:
        came = f"{len(info.warnings)} warnings (the first: {info.warnings[0]})"
        raise UserError(f"{out_dir} came with {came}, but config.data.strict is set. {remedy}")
    return info


class _ObjectsBuilder(tfds.core.ShardBasedBuilder):
    """Streams objects into shards; a GeneratorBasedBuilder holds up to 1 GB, and imports TensorFlow beyond that."""

    name = records.BUILDER_NAME
    VERSION = tfds.core.Version(records.VERSION)
    # Otherwise TFDS looks for download checksums beside this module, with a package that it does not install.
    code_path = None

    def __init__(
        self, folders: dict[str, list[epath.Path]], settings: ReadSettings, on_bad: str, bar: Progress, **kwargs
    ):
        self._folders, self._settings, self._on_bad, self._bar = folders, settings, on_bad, bar
        self.unread = collections.Counter()  # names of files that were not read, and in how many objects
        self._warnings: list[str] = []
        self._written = {split: [] for split in folders}
        self._skipped: list[str] = []
        super().__init__(**kwargs)

    def dataset_info(self, description: dict) -> DatasetInfo:
        """What was written, after ``download_and_prepare``."""
        splits = {}
        for split, written in self._written.items():
            if not written:
                raise UserError(f"split {split!r} has no valid objects; the first invalid one: {self._skipped[0]}")
            names, views, sizes, digests = (list(column) for column in zip(*written, strict=True))
            splits[split] = SplitInfo(names, views, sizes, records.digest_lines(digests))
        fingerprint = records.join_fingerprints(splits)
        return DatasetInfo(settings_lib.plain(description), splits, self._skipped, fingerprint, self._warnings)

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(builder=self, features=records.features())

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager  # Nothing is downloaded.
        return {
            split: [functools.partial(self._examples, split, shard) for shard in _shards(folders)]
            for split, folders in self._folders.items()
        }

    def _examples(self, split: str, folders: list[epath.Path]) -> Iterator[tuple[str, dict]]:
        for folder in folders:
            self._bar.advance()
            try:
                views = objects.read_object(folder, self._settings, inside=folder.parent)
            except BadObjectError as error:
                if self._on_bad == "raise":
                    raise
                self._skipped.append(str(error))
                continue
            self._warnings += [f"{folder}: {warning}" for warning in views.warnings]
            self.unread.update(views.unread)
            self._written[split].append((views.name, len(views.pngs), views.size, object_digest(views)))
            example = {"name": views.name.encode(), "png": views.pngs, "size": views.size}
            yield views.name, example | {name: getattr(views.cameras, name) for name in ("R", "t", "K")}

    def _example_writer(self) -> tfds_writer.ExampleWriter:
        return _UncompressedWriter(self.info.file_format)

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded, so nothing is logged."""

    _log_download_done = _log_download_bytes


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Asks no network for a description; TFDS would also leave a folder in TMPDIR."""


class _UncompressedWriter(tfds_writer.ExampleWriter):
    """Writes ArrayRecord without zstd, which does not shrink PNGs and takes a third of the time of a read."""

    def write(self, path, examples) -> None:
        from array_record.python import array_record_module  # not on Windows; see records.check_supported

        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        with contextlib.closing(writer):
            for _, record in examples:
                writer.write(record)


def _shards(folders: list[epath.Path]) -> list[list[epath.Path]]:
    """Consecutive shards of equal numbers of objects, small enough for memory, judging by a few objects."""
    probes = folders[:: max(1, len(folders) // 8)]
    probed = [objects.picture_bytes(folder) for folder in probes]
    per_shard = max(1, int(_SHARD_BYTES // max(*probed, 1)))
    return [folders[start : start + per_shard] for start in range(0, len(folders), per_shard)]


def object_digest(views: ObjectViews) -> str:
    """Name and sha256 of an object's pictures and cameras."""
    digest = hashlib.sha256()
    for png in views.pngs:
        digest.update(len(png).to_bytes(8, "little"))
        digest.update(png)
    for leaf in (views.cameras.R, views.cameras.t, views.cameras.K):
        digest.update(np.ascontiguousarray(leaf, "<f4").tobytes())
    return f"{views.name} {digest.hexdigest()}"
