"""Objects as records: converted once into ArrayRecord by a TFDS builder, without TensorFlow, and read at random.

One record holds one object: its name, the encoded PNG of each view, poses and intrinsics. Beside the records lies
``dataset.json``: names, numbers of views, what the records were made from, and fingerprints of their content.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from etils import epath

from threedim.cameras import Camera
from threedim.data import srn
from threedim.data.files import new_folder

_METADATA = "dataset.json"
_BUILDER_NAME = "threedim_objects"
_VERSION = "1.0.0"
# TFDS keeps one shard in memory while it writes it.
_SHARD_BYTES = 256 << 20


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
      description: what the records were made from, as given to `prepare`.
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


# ---------------------------------------------------------------------------------------------------------- preparing


def prepare(
    splits: Mapping[str, Sequence[epath.PathLike]],
    out_dir: epath.PathLike,
    *,
    on_bad: str = "raise",
    description: dict | None = None,
) -> DatasetInfo:
    """Converts object folders in SRN format into records, or reuses what was made from the same before.

    Args:
      splits: by name, the object folders, in the order that the records get. Names are unique inside a split.
      out_dir: new folder, on a local or mounted disk; appears only when all is done.
      on_bad: "raise" stops at the first bad object; "skip" leaves bad ones out and lists them.
      description: what the folders were found by, JSON-like; the list of folders if None. Records that exist already
        are reused if they were made from an equal description.

    Raises:
      srn.BadObjectError: at the first bad object, with ``on_bad="raise"``.
      ValueError: if ``out_dir`` holds records of another description, or nothing is left to convert.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad must be 'raise' or 'skip', got {on_bad!r}")
    out_dir = epath.Path(out_dir)
    if "://" in str(out_dir):
        raise ValueError(f"{out_dir}: ArrayRecord needs a local or mounted disk; choose another config.data.dir")
    splits = {name: [epath.Path(folder) for folder in folders] for name, folders in splits.items()}
    if description is None:
        description = {"splits": {name: [str(folder) for folder in folders] for name, folders in splits.items()}}
    existing = find_prepared(out_dir, description, on_bad=on_bad)
    if existing is not None:
        return existing
    for name, folders in splits.items():
        _check_folders(name, folders)

    total = sum(len(folders) for folders in splits.values())
    with new_folder(out_dir) as temporary, tqdm.tqdm(total=total, unit="object", desc="preparing") as progress:
        builder = _ObjectsBuilder(splits, on_bad, progress, data_dir=temporary, file_format="array_record")
        builder.download_and_prepare()
        info = builder.dataset_info(description)
        (temporary / _METADATA).write_text(json.dumps(dataclasses.asdict(info), indent=1))
    for line in info.skipped:
        print(f"left out: {line}")
    print(f"prepared {out_dir}: {info.summary()}")
    return info


def find_prepared(out_dir: epath.PathLike, description: dict, *, on_bad: str = "raise") -> DatasetInfo | None:
    """Information about finished records made from ``description``; None if nothing is there yet.

    Raises:
      FileExistsError: if the folder holds something else than records.
      ValueError: if the records were made from another description, or leave out objects although ``on_bad`` is
        "raise"; the message lists the differences.
    """
    out_dir = epath.Path(out_dir)
    if not out_dir.exists():
        return None
    if not (out_dir / _METADATA).exists():
        raise FileExistsError(f"{out_dir} exists, but holds no {_METADATA}; choose another config.data.dir or delete it")
    info = read_info(out_dir)
    remedy = "Choose another config.data.dir, or delete the folder to convert again."
    wanted = _flat(json.loads(json.dumps(description)))
    found = _flat(info.description)
    differences = [
        f"  {key}: records have {_short(found.get(key))}, asked is {_short(wanted.get(key))}"
        for key in sorted(wanted.keys() | found.keys())
        if wanted.get(key) != found.get(key)
    ]
    if differences:
        raise ValueError("\n".join([f"{out_dir} holds records made from something else:", *differences, remedy]))
    if info.skipped and on_bad == "raise":
        raise ValueError(
            f"{out_dir} leaves out {len(info.skipped)} bad objects (the first: {info.skipped[0]}), "
            f"but config.data.on_bad is 'raise'. {remedy}"
        )
    return info


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:80]}… ({len(value)} entries)"


def _check_folders(split: str, folders: list[epath.Path]) -> None:
    if not folders:
        raise ValueError(f"split {split!r} has no object")
    name, count = collections.Counter(folder.name for folder in folders).most_common(1)[0]
    if count > 1:
        same = ", ".join(str(folder) for folder in folders if folder.name == name)
        raise ValueError(f"split {split!r} has {count} objects of one name, {name!r}: {same}; rename all but one")


class _ObjectsBuilder(tfds.core.ShardBasedBuilder):
    """Streams checked objects into shards.

    Not a GeneratorBasedBuilder: that one keeps up to 1 GB in memory, and imports TensorFlow for more.
    """

    name = _BUILDER_NAME
    VERSION = tfds.core.Version(_VERSION)
    # TFDS would look for download checksums beside this module, with a package that it does not install.
    code_path = None

    def __init__(self, folders: dict[str, list[epath.Path]], on_bad: str, progress: tqdm.tqdm, **kwargs):
        self._folders = folders
        self._on_bad = on_bad
        self._progress = progress
        self._written = {split: [] for split in folders}
        self._skipped: list[str] = []
        super().__init__(**kwargs)

    def dataset_info(self, description: dict) -> DatasetInfo:
        """What was written, after ``download_and_prepare``."""
        splits = {}
        for split, objects in self._written.items():
            if not objects:
                raise ValueError(f"split {split!r} has no good object; the first bad one: {self._skipped[0]}")
            names, views, sizes, digests = (list(column) for column in zip(*objects, strict=True))
            splits[split] = SplitInfo(names, views, sizes, _digest(digests))
        fingerprint = _digest([f"{name} {split.fingerprint}" for name, split in splits.items()])
        return DatasetInfo(json.loads(json.dumps(description)), splits, self._skipped, fingerprint)

    def _info(self) -> tfds.core.DatasetInfo:
        # PNGs as bytes: an Image feature would be decoded all views at a time, and encoded by TensorFlow.
        features = {
            "name": tfds.features.Tensor(shape=(), dtype=np.object_),
            "png": tfds.features.Tensor(shape=(None,), dtype=np.object_),
            "R": tfds.features.Tensor(shape=(None, 3, 3), dtype=np.float32),
            "t": tfds.features.Tensor(shape=(None, 3), dtype=np.float32),
            "K": tfds.features.Tensor(shape=(None, 3, 3), dtype=np.float32),
            "size": tfds.features.Tensor(shape=(), dtype=np.int64),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager  # Nothing is downloaded.
        return {
            split: [functools.partial(self._examples, split, shard) for shard in _shards(folders)]
            for split, folders in self._folders.items()
        }

    def _examples(self, split: str, folders: list[epath.Path]) -> Iterator[tuple[str, dict]]:
        for folder in folders:
            self._progress.update()
            try:
                views = srn.read_object(folder)
            except srn.BadObjectError as error:
                if self._on_bad == "raise":
                    raise
                self._skipped.append(str(error))
                continue
            camera = views.cameras
            self._written[split].append((views.name, len(views.pngs), views.size, _object_digest(views)))
            example = {"name": views.name.encode(), "png": views.pngs, "size": views.size}
            yield views.name, example | {"R": camera.R, "t": camera.t, "K": camera.K}

    def _log_download_bytes(self):
        """Says nothing of a download where there is none; so does the next one."""

    def _log_download_done(self):
        pass


def _shards(folders: list[epath.Path]) -> list[list[epath.Path]]:
    """Consecutive shards of about equal numbers of objects, small enough for memory as far as a few objects tell."""
    probes = folders[:: max(1, len(folders) // 8)]
    probed = [sum(file.stat().length for file in (folder / "rgb").glob("*.png")) for folder in probes]
    per_shard = max(1, int(_SHARD_BYTES // max(*probed, 1)))
    return [folders[start : start + per_shard] for start in range(0, len(folders), per_shard)]


def _object_digest(views: srn.ObjectViews) -> str:
    digest = hashlib.sha256()
    for png in views.pngs:
        digest.update(len(png).to_bytes(8, "little"))
        digest.update(png)
    for leaf in (views.cameras.R, views.cameras.t, views.cameras.K):
        digest.update(np.ascontiguousarray(leaf, "<f4").tobytes())
    return f"{views.name} {digest.hexdigest()}"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------------ reading


def read_info(out_dir: epath.PathLike) -> DatasetInfo:
    """Reads ``dataset.json``.

    Raises:
      FileNotFoundError: if the folder holds no finished records.
      ValueError: if the file is damaged.
    """
    path = epath.Path(out_dir) / _METADATA
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: no records were prepared there; run --mode=prepare")
    try:
        fields = json.loads(path.read_text())
        fields["splits"] = {name: SplitInfo(**split) for name, split in fields["splits"].items()}
        return DatasetInfo(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete {out_dir} and prepare again") from error


def open_split(out_dir: epath.PathLike, split: str) -> ObjectDataset:
    """Opens one split of finished records.

    Raises:
      FileNotFoundError: if nothing was prepared there.
      ValueError: if there is no such split, or files do not fit what dataset.json says.
    """
    info = read_info(out_dir)
    if split not in info.splits:
        raise ValueError(f"{out_dir} has no split {split!r}; it has {', '.join(info.splits)}")
    return ObjectDataset(out_dir, split, info.splits[split])


def split_views(num_views: int, num_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the views known to training, and of those held out, which are spread evenly over the object's views.

    Raises:
      ValueError: unless 0 <= num_held_out <= num_views.
    """
    if not 0 <= num_held_out <= num_views:
        raise ValueError(f"cannot hold out {num_held_out} of {num_views} views")
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
        self.fingerprint = info.fingerprint if part == "all" else _digest([info.fingerprint, part, str(held_out)])
        if len(self._open()) != len(info.names):
            raise ValueError(
                f"{out_dir}: split {split!r} has {len(self._open())} records, but {_METADATA} says {len(info.names)}"
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
        """The same objects with only the views that `without_held_out` leaves out."""
        return self._restricted(num_held_out, "held_out")

    def __getitem__(self, index: int) -> srn.ObjectViews:
        """All views of an object, still encoded."""
        record, chosen = self._read(index), self._views[index]
        cameras = Camera(record["R"][chosen], record["t"][chosen], record["K"][chosen])
        return srn.ObjectViews(self.names[index], list(record["png"][chosen]), cameras, record["size"])

    def views(self, index: int, indices: Sequence[int], size: int | None = None) -> tuple[np.ndarray, Camera]:
        """Decodes views of an object, averaged down to ``size`` pixels (by default not resized).

        Returns:
          Images (view, size, size, 3) uint8 in the order of ``indices``, and their cameras with K to match.
        """
        return self[index].decode(indices, size)

    def _choose(self, num_views: int) -> np.ndarray:
        known, held_out = split_views(num_views, self._held_out)
        return {"all": np.arange(num_views), "known": known, "held_out": held_out}[self._part]

    def _restricted(self, num_held_out: int, part: str) -> ObjectDataset:
        if self._part != "all":
            raise ValueError("the views of this data set are a choice already; choose from the whole split")
        for name, views in zip(self._info.names, self._info.views, strict=True):
            if num_held_out < 0 or num_held_out > views - 1:
                raise ValueError(f"cannot hold out {num_held_out} of the {views} views of {name}; one must remain")
        if num_held_out == 0 and part == "known":
            return self
        return ObjectDataset(self._out_dir, self._split, self._info, num_held_out, part)

    def _open(self):
        if self._source is None:
            folder = self._out_dir / _BUILDER_NAME / _VERSION
            self._source = tfds.builder_from_directory(folder).as_data_source(self._split)
        return self._source

    def _read(self, index: int) -> dict:
        record = self._open()[int(index)]
        if record["name"].decode() != self.names[index]:
            raise ValueError(
                f"{self._out_dir}: record {index} of split {self._split!r} is {record['name'].decode()!r}, but "
                f"{_METADATA} says {self.names[index]!r}; delete the folder and prepare again"
            )
        return record
