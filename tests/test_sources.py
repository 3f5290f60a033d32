"""From a configuration's data section to splits and records."""

import os

import numpy as np
import pytest
from synthetic import make_objects

from configs import base
from threedim.data import records, sources
from threedim.data.views import BadObjectError


def data_config(tmp_path, **fields):
    config = base.get_config().data
    config.update({"dir": str(tmp_path / "data"), "source": str(tmp_path / "SRN"), "num_test_objects": 0})
    config.update({"train_split": "cars_train", "val_split": "", "test_split": "cars_test", "holdout_views": 0})
    config.procedural.update({"kinds": ("chair", "car"), "num_train_objects": 3, "num_test_objects": 2, "views": 3})
    config.procedural.update({"test_views": 4, "size": 16, "samples": 1})
    config.update(fields)
    return config


@pytest.fixture
def release(tmp_path):
    for split, count in (("train", 6), ("val", 1), ("test", 3)):
        make_objects(tmp_path / f"SRN/cars_{split}", count=count, views=4 if split == "train" else 6, prefix=split)


def names(splits):
    return {split: [folder.name for folder in folders] for split, folders in splits.items()}


def all_names(splits):
    return sorted(folder.name for folders in splits.values() for folder in folders)


@pytest.mark.usefixtures("release")
def test_released_splits_and_resplits(tmp_path):
    found = names(sources.source_splits(data_config(tmp_path, val_split="cars_val")))
    assert {split: len(folders) for split, folders in found.items()} == {"train": 6, "val": 1, "test": 3}
    assert found["test"] == ["test_000", "test_001", "test_002"]
    assert list(sources.source_splits(data_config(tmp_path, test_split=""))) == ["train"]

    released, seen = sources.source_splits(data_config(tmp_path)), set()
    for seed in range(5):
        new = sources.resplit(released, seed)
        assert {split: len(folders) for split, folders in new.items()} == {"train": 6, "test": 3}
        assert all_names(new) == all_names(released)  # complete, so nothing is in both splits
        assert sources.resplit({split: folders[::-1] for split, folders in released.items()}, seed) == new
        assert sources.source_splits(data_config(tmp_path, resplit_seed=seed)) == new
        seen.add(tuple(names(new)["test"]))
    assert len(seen) > 1
    assert any(name.startswith("train") for test in seen for name in test)
    with pytest.raises(ValueError, match="have the same name"):
        sources.resplit({"train": released["train"], "test": released["train"][:1]}, 0)


def test_folder_of_objects(tmp_path):
    folders = make_objects(tmp_path / "SRN", count=7)
    one_folder = {"train_split": "", "test_split": ""}
    held_out = names(sources.source_splits(data_config(tmp_path, num_test_objects=2, **one_folder)))
    assert (len(held_out["train"]), len(held_out["test"])) == (5, 2)
    assert sorted(held_out["train"] + held_out["test"]) == [folder.name for folder in folders]
    other = names(sources.source_splits(data_config(tmp_path, num_test_objects=2, split_seed=3, **one_folder)))
    assert other != held_out
    assert names(sources.source_splits(data_config(tmp_path, **one_folder))) == {"train": [f.name for f in folders]}
    with pytest.raises(ValueError, match="cannot hold out 7 of 7 objects"):
        sources.source_splits(data_config(tmp_path, num_test_objects=7, **one_folder))
    with pytest.raises(ValueError, match="must be '' too"):
        sources.source_splits(data_config(tmp_path, train_split=""))
    with pytest.raises(FileNotFoundError, match=r"cars_train\.zip(.|\n)*train_split to ''"):
        sources.prepare_from_config(data_config(tmp_path))
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("release")
def test_prepare_and_reuse(tmp_path, capsys):
    bad = tmp_path / "SRN/cars_test/test_001/pose/000000.txt"
    pose = bad.read_text()
    bad.write_text("nothing")
    with pytest.raises(BadObjectError, match=r"cars_test/test_001/pose/000000\.txt"):
        sources.prepare_from_config(data_config(tmp_path))
    skipping = data_config(tmp_path, on_bad="skip", dir=str(tmp_path / "skipped"))
    assert records.open_split(sources.prepare_from_config(skipping), "test").names == ["test_000", "test_002"]
    bad.write_text(pose)
    capsys.readouterr()

    config = data_config(tmp_path, holdout_views=1)
    out_dir = sources.prepare_from_config(config)
    assert "train: 6 objects, 24 views of 16 px; test: 3 objects, 18 views" in capsys.readouterr().out
    assert [sources.open_from_config(config, split).num_views(0) for split in ("train", "holdout", "test")] == [3, 1, 6]
    assert records.open_split(out_dir, "train").num_views(0) == 4
    # Reused without the source, and with other settings that only matter when records are opened.
    (tmp_path / "SRN").rename(tmp_path / "moved")
    assert sources.prepare_from_config(data_config(tmp_path, holdout_views=2)) == out_dir
    assert "reusing" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r'test_split: "cars_test" → ""'):
        sources.prepare_from_config(data_config(tmp_path, test_split=""))
    with pytest.raises(ValueError, match="resplit_seed: -1 → 0"):
        sources.prepare_from_config(data_config(tmp_path, resplit_seed=0))


def test_procedural_objects(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # renders in this process
    config = data_config(tmp_path, source="")
    sources.prepare_from_config(config)
    train, test = (sources.open_from_config(config, split) for split in ("train", "test"))
    assert [len(train), train.num_views(0), train.image_size] == [3, 3, 16]
    assert [len(test), test.num_views(0)] == [2, 4]
    assert not set(train.names) & set(test.names)
    assert np.ptp(train.views(0, [0, 1])[0]) > 50
    config.procedural.num_train_objects = 4
    with pytest.raises(ValueError, match=r"procedural\.num_train_objects: 3 → 4"):
        sources.prepare_from_config(config)
