"""Random access to the records that `convert` writes.

One record holds one object: its name, the encoded PNG of each view, poses and intrinsics. ``dataset.json`` beside the
records holds names, numbers of views, what the records were made from, and fingerprints of their content.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf.message import DecodeError

from threedim.cameras import Camera
from threedim.data.views import ObjectViews
from threedim.errors import MissingError, UserError
from threedim.files import check_name, check_regular, interpreting, read_json

try:
    from array_record.python import array_record_data_source
except ImportError:  # there is no wheel for Windows, where the rest of the package works
    array_record_data_source = None

METADATA = "dataset.json"
BUILDER_NAME = "threedim_objects"
VERSION = "1.0.0"
_AGAIN = "delete the folder and prepare again"


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """Contents of a split, one entry per object in the order of the records."""

    names: list[str]
    views: list[int]  # numbers of views
    sizes: list[int]  # heights and widths of the images, pixels
    fingerprint: str  # sha256 over names, PNG bytes, poses and intrinsics


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Contents of a folder of records."""

    description: dict  # what the records were made from, as given to `convert.prepare`
    splits: dict[str, SplitInfo]
    skipped: list[str]  # one line per invalid object that was left out: its path and the problem
    fingerprint: str  # sha256 over the fingerprints of the splits
    warnings: list[str] = dataclasses.field(default_factory=list)  # one line each: an object's path and the doubt

    def summary(self) -> str:
        """Objects and views per split, in one line."""
        parts = []
        for name, split in self.splits.items():
            size = f" of {split.sizes[0]} px" if len(set(split.sizes)) == 1 else ""
            parts.append(f"{name}: {len(split.names)} objects, {sum(split.views)} views{size}")
        parts += [f"{len(self.skipped)} bad objects left out"] if self.skipped else []
        parts += [f"{len(self.warnings)} warnings"] if self.warnings else []
        return "; ".join([*parts, f"fingerprint {self.fingerprint[:12]}"])


def read_info(out_dir: epath.PathLike) -> DatasetInfo:
    """Reads ``dataset.json``.

    Raises:
      MissingError: if the folder has no finished records.
      UserError: if the file is damaged.
    """
    path = epath.Path(out_dir) / METADATA
    if not path.exists():
        raise MissingError(f"{path} does not exist: prepare the records with --mode=prepare")
    fields = read_json(path)
    with interpreting(path, f"delete {out_dir} and prepare again"):
        fields["splits"] = {name: SplitInfo(**split) for name, split in fields["splits"].items()}
        for split in fields["splits"].values():
            for name, views, size in zip(split.names, split.views, split.sizes, strict=True):
                check_name(name, path)
                if not (isinstance(views, int) and isinstance(size, int) and views > 0 < size):
                    raise ValueError(f"{name} has {views!r} views of {size!r} pixels")
        info = DatasetInfo(**fields)
        if info.fingerprint != join_fingerprints(info.splits):
            raise ValueError("its fingerprint is not that of its splits")
        return info


def open_split(out_dir: epath.PathLike, split: str) -> ObjectDataset:
    """Opens one split of finished records.

    Raises:
      MissingError: if the folder has no finished records.
      UserError: if there is no such split, or the records do not match dataset.json.
    """
    info = read_info(out_dir)
    if split not in info.splits:
        raise UserError(f"{out_dir} has no split {split!r}; it has {', '.join(info.splits)}")
    return ObjectDataset(out_dir, split, info.splits[split])


def split_views(num_views: int, num_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training views and of the held-out views, which are evenly spaced.

    Raises:
      UserError: unless 0 <= num_held_out <= num_views.
    """
    if not 0 <= num_held_out <= num_views:
        raise UserError(f"cannot hold out {num_held_out} of {num_views} views")
    held_out = ((2 * np.arange(num_held_out) + 1) * num_views) // (2 * max(num_held_out, 1))
    return np.setdiff1d(np.arange(num_views), held_out), held_out


@functools.cache
def features() -> tfds.features.FeaturesDict:
    """What a record holds.

    A constant, and not read from the records' folder: TFDS imports the modules that its features.json names.
    """
    # PNGs as bytes: Image features are encoded by TensorFlow, and decoded all views at a time.
    kinds = {"name": ((), np.object_), "png": ((None,), np.object_), "R": ((None, 3, 3), np.float32)}
    kinds |= {"t": ((None, 3), np.float32), "K": ((None, 3, 3), np.float32), "size": ((), np.int64)}
    return tfds.features.FeaturesDict(
        {name: tfds.features.Tensor(shape=shape, dtype=dtype) for name, (shape, dtype) in kinds.items()}
    )


class ObjectDataset:
    """Random access to the objects of a split, or to some views of each. Decodes only the views that are asked for.

    ``image_size`` is the height and width of the smallest images, pixels; ``fingerprint`` is the sha256 of the content
    and of the choice of views. Can be pickled: each process opens the files itself.
    """

    def __init__(self, out_dir: epath.PathLike, split: str, info: SplitInfo, held_out: int = 0, part: str = "all"):
        """Use `open_split`."""
        self._out_dir, self._split, self._info, self._part = epath.Path(out_dir), split, info, part
        self._source = None
        self.names = info.names
        self.image_size = min(info.sizes)
        if part == "all":
            self._views, self.fingerprint = [np.arange(count) for count in info.views], info.fingerprint
        else:
            self._views = [split_views(count, held_out)[part == "held_out"] for count in info.views]
            self.fingerprint = digest_lines([info.fingerprint, part, str(held_out)])
        count = len(self._open())
        if count != len(info.names):
            raise UserError(f"{out_dir}: split {split!r} has {count} records, but {METADATA} lists {len(info.names)}")

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_source": None}

    def __len__(self) -> int:
        return len(self.names)

    def num_views(self, index: int) -> int:
        """Number of views of an object."""
        return len(self._views[index])

    def without_held_out(self, num_held_out: int) -> ObjectDataset:
        """The same objects with only their training views (`split_views`); itself if ``num_held_out`` is 0."""
        return self._restricted(num_held_out, "known") if num_held_out else self

    def only_held_out(self, num_held_out: int) -> ObjectDataset:
        """The same objects with only the views that `without_held_out` leaves out; at least one."""
        if num_held_out < 1:
            raise UserError(f"no views are held out (config.data.holdout_views is {num_held_out})")
        return self._restricted(num_held_out, "held_out")

    def __getitem__(self, index: int) -> ObjectViews:
        """All views of an object, still encoded."""
        return self._pick(index, self._views[index])

    def views(self, index: int, indices: Sequence[int], size: int | None = None) -> tuple[np.ndarray, Camera]:
        """Decodes some views of an object, as `views.ObjectViews.decode` does."""
        return self._pick(index, self._views[index][np.asarray(indices)]).decode(size=size)

    def _pick(self, index: int, chosen: np.ndarray) -> ObjectViews:
        index = range(len(self))[index]
        name, source = self.names[index], self._open()
        with self._intact():
            record = features().deserialize_example_np(source[index])
        if (found := record["name"].decode()) != name:
            wrong = f"record {index} of split {self._split!r} is {found!r}, but {METADATA} lists {name!r}"
            raise UserError(f"{self._out_dir}: {wrong}; {_AGAIN}")
        if len(record["png"]) != self._info.views[index]:
            raise UserError(f"{self._out_dir}: {name} does not have the views that {METADATA} lists; {_AGAIN}")
        cameras = Camera(record["R"][chosen], record["t"][chosen], record["K"][chosen])
        return ObjectViews(name, list(record["png"][chosen]), cameras, record["size"])

    def _restricted(self, num_held_out: int, part: str) -> ObjectDataset:
        if self._part != "all":
            raise UserError("this data set is already restricted to some views; restrict the whole split instead")
        for name, views in zip(self._info.names, self._info.views, strict=True):
            if not 0 <= num_held_out < views:
                raise UserError(f"cannot hold out {num_held_out} of the {views} views of {name}; one must remain")
        return ObjectDataset(self._out_dir, self._split, self._info, num_held_out, part)

    def _open(self) -> array_record_data_source.ArrayRecordDataSource:
        if self._source is None:
            check_supported()
            folder, stem = self._out_dir / BUILDER_NAME / VERSION, f"{BUILDER_NAME}-{self._split}.array_record"
            files = sorted(map(os.fspath, folder.glob(f"{stem}-*")))
            if files != [os.fspath(folder / f"{stem}-{i:05d}-of-{len(files):05d}") for i in range(len(files) or 1)]:
                raise UserError(f"{folder}: files of split {self._split!r} are missing; {_AGAIN}")
            for path in files:
                check_regular(path)
            with self._intact():
                self._source = array_record_data_source.ArrayRecordDataSource(files)
                len(self._source)  # opens the files
        return self._source

    @contextlib.contextmanager
    def _intact(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, DecodeError) as error:  # of array_record and protobuf, which check sums
            raise UserError(f"{self._out_dir}: split {self._split!r} is damaged ({error}); {_AGAIN}") from error


def check_supported() -> None:
    """Raises `UserError` where records can be neither written nor read."""
    if array_record_data_source is None:
        where = "which has no wheel for Windows: use Linux, macOS or WSL. Sampling an object folder works without"
        raise UserError(f"prepared data needs the package array_record, {where}")


def join_fingerprints(splits: Mapping[str, SplitInfo]) -> str:
    """The fingerprint of a data set from those of its splits."""
    return digest_lines(f"{name} {split.fingerprint}" for name, split in splits.items())


def digest_lines(lines: Iterable[str]) -> str:
    """sha256 over lines of text."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
