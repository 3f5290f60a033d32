"""From ``config.data`` to records: which objects make up which split, and preparing them.

``dir/records`` is made from ``dir/procedural`` or ``dir/unpacked`` if the source needs them. ``holdout_views`` evenly
spaced views of each training object are held out when records are opened, so changing it needs no new conversion.
configs/base.py documents all fields.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import ml_collections
import numpy as np
from etils import epath

from threedim import arrays, files, locks
from threedim.data import convert, objects, records, release
from threedim.data.views import ReadSettings
from threedim.errors import UserError


def prepare_from_config(data: ml_collections.ConfigDict) -> epath.Path:
    """Renders, unpacks and converts what does not exist yet, and prints a summary of the records.

    Records made earlier with the same settings are reused without reading the source. In a run of several processes
    that share a disk, one of them calls this first.

    Returns:
      The folder of the records, for `records.open_split`.

    Raises:
      MissingError: if the source lacks a split; explains what to download and where to put it.
      BadObjectError: at the first invalid object, if ``on_bad`` is "raise".
      UserError: if the settings contradict each other, or the folder holds records of other settings.
    """
    out_dir, description = epath.Path(data.dir) / "records", _description(data)
    # The settings are for folders that people bring, not for what is rendered here.
    settings = read_settings(data) if data.source else ReadSettings()
    info = convert.find_prepared(out_dir, description, on_bad=data.on_bad, strict=settings.strict)
    if info is None:
        how = {"on_bad": data.on_bad, "description": description, "settings": settings}
        with locks.hold(data.dir, "prepares data in"):
            convert.prepare(source_splits(data), out_dir, **how)
    else:
        locks.remove_left(data.dir)  # of a process that was killed after the records were complete
        print(f"reusing {out_dir} (delete it to convert again): {info.summary()}")
    return out_dir


def open_from_config(data: ml_collections.ConfigDict, split: str) -> records.ObjectDataset:
    """Opens a prepared split.

    "train" has only the training views and "holdout" the other views of the same objects (`records.split_views`);
    "val" and "test" are other objects with all their views.

    Raises:
      MissingError: if nothing was prepared.
      UserError: if there is no such split, or ``holdout_views`` leaves no views for it.
    """
    out_dir = epath.Path(data.dir) / "records"
    if split == "holdout":
        return records.open_split(out_dir, "train").only_held_out(data.holdout_views)
    dataset = records.open_split(out_dir, split)
    return dataset.without_held_out(data.holdout_views) if split == "train" else dataset


def source_splits(data: ml_collections.ConfigDict) -> dict[str, list[epath.Path]]:
    """Object folders of the splits "train", "val" and "test", rendered or unpacked if they do not exist yet."""
    if not data.source:
        splits = _procedural_splits(data)
    elif not data.train_split:
        if data.val_split or data.test_split:
            raise UserError("config.data.train_split is '', so val_split and test_split must be '' too")
        folders, num_test = _find_objects(data, data.source), data.num_test_objects
        if not 0 <= num_test < len(folders):
            raise UserError(f"cannot hold out {num_test} of {len(folders)} objects (config.data.num_test_objects)")
        splits = resplit({"train": folders[num_test:], "test": folders[:num_test]}, data.split_seed)
        splits = {split: folders for split, folders in splits.items() if folders}
    else:
        named = {"train": data.train_split, "val": data.val_split, "test": data.test_split}
        unpack_to = epath.Path(data.dir) / "unpacked"
        found = {split: release.find_split(data.source, name, unpack_to) for split, name in named.items() if name}
        splits = {split: _find_objects(data, folder) for split, folder in found.items()}
    return splits if data.resplit_seed < 0 else resplit(splits, data.resplit_seed)


def read_settings(data: ml_collections.ConfigDict) -> ReadSettings:
    """How folders of views are read; `UserError` if a value is unknown."""
    return ReadSettings(**{f.name: data.get(f.name, f.default) for f in dataclasses.fields(ReadSettings)})


def _find_objects(data: ml_collections.ConfigDict, folder: epath.PathLike) -> list[epath.Path]:
    """The objects of a folder, which must lie in the source if it is given there; prints what lies beside them."""
    found = objects.find_objects(folder)
    is_below = epath.Path(folder).is_relative_to(data.source)
    with files.only_inside(data.source if is_below and not data.allow_outside else None):
        if problem := files.leads_out(found[0].parent):
            raise UserError(f"{found[0].parent} {problem}")
    if beside := objects.files_beside(found[0].parent):
        print(f"not read in {found[0].parent}: {arrays.listed(beside, ', ')}")
    return found


def resplit(splits: Mapping[str, Sequence[epath.Path]], seed: int) -> dict[str, list[epath.Path]]:
    """Merges the splits, shuffles, and splits again into parts of the same sizes: chairs* for released chairs [3].

    Objects keep their views: of released chairs, 50 on a sphere or 251 on a spiral, in every new split. The result
    depends on the folder names and the seed, not on the order of the folders.

    Raises:
      UserError: if two objects have the same name.
    """
    merged = sorted((folder for folders in splits.values() for folder in folders), key=lambda folder: folder.name)
    for one, other in itertools.pairwise(merged):
        if one.name == other.name:
            raise UserError(f"cannot merge splits: {one} and {other} have the same name")
    order = np.random.default_rng(seed).permutation(len(merged))
    new, start = {}, 0
    for name, folders in splits.items():
        new[name] = sorted(merged[index] for index in order[start : start + len(folders)])
        start += len(folders)
    return new


def _procedural_splits(data: ml_collections.ConfigDict) -> dict[str, list[epath.Path]]:
    # Imported here, because a training run that reads finished records needs no renderer.
    from threedim.rendering import render

    p, splits = data.procedural, {}
    for split, count, views in (("train", p.num_train_objects, p.views), ("test", p.num_test_objects, p.test_views)):
        if count:
            out = epath.Path(data.dir) / "procedural" / split
            report = render.render_procedural(out, split, tuple(p.kinds), count, views, p.size, p.samples, p.seed)
            # From the report, not from the folder: an earlier run may have rendered more objects.
            splits[split] = [out / name for name in sorted(report.rendered + report.kept)]
    return splits


def _description(data: ml_collections.ConfigDict) -> dict:
    """The fields that determine the content of the records."""
    if not data.source:
        return {"source": "", "procedural": data.procedural.to_dict(), "resplit_seed": data.resplit_seed}
    fields = ["source", "train_split", "resplit_seed"]
    fields += ["val_split", "test_split"] if data.train_split else ["num_test_objects", "split_seed"]
    # Only what differs from the defaults, so that records made before a setting existed are reused.
    return {field: data[field] for field in fields} | read_settings(data).changed()
