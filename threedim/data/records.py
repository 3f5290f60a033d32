"""Objects as records: what `convert` has written, read at random.

One record holds one object: its name, the encoded PNG of each view, poses and intrinsics. Beside the records lies
``dataset.json``: names, numbers of views, what the records were made from, and fingerprints of their content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from threedim.cameras import Camera
from threedim.data import srn
from threedim.errors import MissingError, UserError

METADATA = "dataset.json"
BUILDER_NAME = "threedim_objects"
VERSION = "1.0.0"


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """What a split holds, one entry per object in the order of the records.

    Attributes:
      names: the objects' names.
      views: numbers of views.
      sizes: heights and widths of their pictures, pixels.
      fingerprint: sha256 over names, PNG bytes, poses and intrinsics.
    """

    names: list[str]
    views: list[int]
    sizes: list[int]
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a folder of records holds.

    Attributes:
      description: what the records were made from, as given to `convert.prepare`.
      splits: by name.
      skipped: one line per bad object that was left out: its path and what was wrong.
      fingerprint: sha256 over the fingerprints of the splits.
    """

    description: dict
    splits: dict[str, SplitInfo]
    skipped: list[str]
    fingerprint: str

    def summary(self) -> str:
        """Objects and views per split, in one line."""
        parts = [
            f"{name}: {len(split.names)} objects, {sum(split.views)} views"
            + (f" of {split.sizes[0]} px" if len(set(split.sizes)) == 1 else "")
            for name, split in self.splits.items()
        ]
        left_out = f"; {len(self.skipped)} bad objects left out" if self.skipped else ""
        return f"{'; '.join(parts)}{left_out}; fingerprint {self.fingerprint[:12]}"


def read_info(out_dir: epath.PathLike) -> DatasetInfo:
    """Reads ``dataset.json``.

    Raises:
      FileNotFoundError: if the folder holds no finished records.
      ValueError: if the file is damaged.
    """
    path = epath.Path(out_dir) / METADATA
    if not path.exists():
        raise MissingError(f"{path} is missing: no records were prepared there; run --mode=prepare")
    try:
        fields = json.loads(path.read_text())
        fields["splits"] = {name: SplitInfo(**split) for name, split in fields["splits"].items()}
        return DatasetInfo(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); delete {out_dir} and prepare again") from error


def open_split(out_dir: epath.PathLike, split: str) -> ObjectDataset:
    """Opens one split of finished records.

    Raises:
      FileNotFoundError: if nothing was prepared there.
      ValueError: if there is no such split, or files do not fit what dataset.json says.
    """
    info = read_info(out_dir)
    if split not in info.splits:
        raise UserError(f"{out_dir} has no split {split!r}; it has {', '.join(info.splits)}")
    return ObjectDataset(out_dir, split, info.splits[split])


def split_views(num_views: int, num_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the views known to training, and of those held out, which are spread evenly over the object's views.

    Raises:
      ValueError: unless 0 <= num_held_out <= num_views.
    """
    if not 0 <= num_held_out <= num_views:
        raise UserError(f"cannot hold out {num_held_out} of {num_views} views")
    held_out = ((2 * np.arange(num_held_out) + 1) * num_views) // (2 * max(num_held_out, 1))
    return np.setdiff1d(np.arange(num_views), held_out), held_out


class ObjectDataset:
    """The objects of a split, or some views of each: random access, and only what is asked for is decoded.

    May be sent to another process: each opens the files for itself.

    Attributes:
      names: the objects' names.
      fingerprint: sha256 of the content, and of the choice of views.
      image_size: height and width of the smallest pictures, pixels.
    """

    def __init__(self, out_dir: epath.PathLike, split: str, info: SplitInfo, held_out: int = 0, part: str = "all"):
        """Use `open_split`."""
        self._out_dir = epath.Path(out_dir)
        self._split = split
        self._info = info
        self._held_out = held_out
        self._part = part
        self._views = [self._choose(count) for count in info.views]
        self._source = None
        self.names = info.names
        self.image_size = min(info.sizes)
        self.fingerprint = info.fingerprint if part == "all" else digest_lines([info.fingerprint, part, str(held_out)])
        if len(self._open()) != len(info.names):
            raise UserError(
                f"{out_dir}: split {split!r} has {len(self._open())} records, but {METADATA} says {len(info.names)}"
            )

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_source": None}

    def __len__(self) -> int:
        return len(self.names)

    def num_views(self, index: int) -> int:
        """Number of views of an object."""
        return len(self._views[index])

    def without_held_out(self, num_held_out: int) -> ObjectDataset:
        """The same objects with only the views that training may see (`split_views`); none is held out for 0."""
        return self._restricted(num_held_out, "known")

    def only_held_out(self, num_held_out: int) -> ObjectDataset:
        """The same objects with only the views that `without_held_out` leaves out; at least one."""
        if num_held_out < 1:
            raise UserError(f"no views are held out (config.data.holdout_views is {num_held_out})")
        return self._restricted(num_held_out, "held_out")

    def __getitem__(self, index: int) -> srn.ObjectViews:
        """All views of an object, still encoded."""
        return self._pick(index, self._views[index])

    def views(self, index: int, indices: Sequence[int], size: int | None = None) -> tuple[np.ndarray, Camera]:
        """Decodes views of an object, averaged down to ``size`` pixels (by default not resized).

        Returns:
          Images (view, size, size, 3) uint8 in the order of ``indices``, and their cameras with K to match.
        """
        return self._pick(index, self._views[index][np.asarray(indices)]).decode(size=size)

    def _pick(self, index: int, chosen: np.ndarray) -> srn.ObjectViews:
        index = range(len(self))[index]
        record = self._read(index)
        cameras = Camera(record["R"][chosen], record["t"][chosen], record["K"][chosen])
        return srn.ObjectViews(self.names[index], list(record["png"][chosen]), cameras, record["size"])

    def _choose(self, num_views: int) -> np.ndarray:
        known, held_out = split_views(num_views, self._held_out)
        return {"all": np.arange(num_views), "known": known, "held_out": held_out}[self._part]

    def _restricted(self, num_held_out: int, part: str) -> ObjectDataset:
        if self._part != "all":
            raise UserError("the views of this data set are a choice already; choose from the whole split")
        for name, views in zip(self._info.names, self._info.views, strict=True):
            if num_held_out < 0 or num_held_out > views - 1:
                raise UserError(f"cannot hold out {num_held_out} of the {views} views of {name}; one must remain")
        if num_held_out == 0 and part == "known":
            return self
        return ObjectDataset(self._out_dir, self._split, self._info, num_held_out, part)

    def _open(self):
        if self._source is None:
            folder = self._out_dir / BUILDER_NAME / VERSION
            self._source = tfds.builder_from_directory(folder).as_data_source(self._split)
        return self._source

    def _read(self, index: int) -> dict:
        record = self._open()[index]
        if record["name"].decode() != self.names[index]:
            raise UserError(
                f"{self._out_dir}: record {index} of split {self._split!r} is {record['name'].decode()!r}, but "
                f"{METADATA} says {self.names[index]!r}; delete the folder and prepare again"
            )
        return record


def digest_lines(lines: Iterable[str]) -> str:
    """sha256 over lines of text."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
