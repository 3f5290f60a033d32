"""From a configuration's data section to splits and records."""

import json
import os

import numpy as np
import pytest
from layouts import make_scene, write_nerf, write_nerfstudio
from synthetic import make_objects

from threedim import locks, tasks
from threedim.configs import base
from threedim.data import records, sources, srn
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
    # Killed when the records were complete, but its lock still there.
    gone = {
        "token": "a",
        "what": "prepares data in",
        "since": 0,
        "host": "elsewhere",
        "pid": 1,
        "started": 0,
        "alive": 0,
    }
    lock = tmp_path / "data" / locks.NAME
    lock.write_text(json.dumps(gone))
    # Reused without the source, and with other settings that only matter when records are opened.
    (tmp_path / "SRN").rename(tmp_path / "moved")
    assert sources.prepare_from_config(data_config(tmp_path, holdout_views=2)) == out_dir
    assert "reusing" in capsys.readouterr().out
    assert not lock.exists()
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


def test_read_settings_are_part_of_what_records_are_compared_by(tmp_path, capsys):
    folder = {"train_split": "", "test_split": ""}
    for number in range(3):
        write_nerf(tmp_path / f"SRN/scene_{number}", *make_scene())
        (tmp_path / f"SRN/scene_{number}/depth").mkdir()
    (tmp_path / "SRN/more.zip").write_bytes(b"")
    one = sources.prepare_from_config(data_config(tmp_path, **folder))
    printed = capsys.readouterr().out
    assert f"not read in {tmp_path}/SRN: more.zip\n" in printed
    assert "not read: depth/ (3 objects)\nprepared" in printed
    # Neither decides what is read, nor are the defaults written down: records of older versions are reused.
    for same in ({"check_cameras": False}, {"strict": True}, {"axes": ""}):
        assert sources.prepare_from_config(data_config(tmp_path, **folder, **same)) == one
    assert set(records.read_info(one).description) == {
        "source", "train_split", "resplit_seed", "num_test_objects", "split_seed"
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"scale: \(absent\) → 2\.0"):
        sources.prepare_from_config(data_config(tmp_path, **folder, scale=2.0))
    other = sources.prepare_from_config(data_config(tmp_path, **folder, scale=2.0, dir=str(tmp_path / "other")))
    t = [records.open_split(out, "train")[0].cameras.t for out in (one, other)]
    np.testing.assert_allclose(2 * t[0], t[1])
    with pytest.raises(ValueError, match=r"scene_0: cameras look away.*axes=opengl"):
        sources.prepare_from_config(data_config(tmp_path, **folder, axes="opencv", dir=str(tmp_path / "third")))


def test_warnings_are_counted_and_strict_refuses_them(tmp_path, capsys):
    pictures, poses = make_scene()
    srn.write_object(tmp_path / "SRN/good", pictures, poses)
    srn.write_object(tmp_path / "SRN/empty", 0 * pictures, poses)
    folder = {"train_split": "", "test_split": ""}
    out = sources.prepare_from_config(data_config(tmp_path, **folder))
    printed = capsys.readouterr().out
    assert f"warning: {tmp_path}/SRN/empty: all views are empty" in printed
    assert "train: 2 objects, 10 views of 64 px; 1 warnings;" in printed
    assert "1 warnings" in records.read_info(out).summary()
    with pytest.raises(ValueError, match=r"records came with 1 warnings .*SRN/empty: all views are empty"):
        sources.prepare_from_config(data_config(tmp_path, **folder, strict=True))
    strict = data_config(tmp_path, **folder, strict=True, dir=str(tmp_path / "strict"))
    with pytest.raises(BadObjectError, match="empty: all views are empty"):
        sources.prepare_from_config(strict)
    strict.on_bad = "skip"
    assert records.open_split(sources.prepare_from_config(strict), "train").names == ["good"]


def test_an_object_to_sample_is_read_with_the_same_settings(tmp_path, capsys):
    config = base.get_config()
    config.data.dir, config.model.image_size = str(tmp_path / "nothing"), 16
    config.sample.object = str(tmp_path / "one")
    write_nerfstudio(tmp_path / "one", *make_scene(96, 64, radius=1.0))
    with pytest.raises(BadObjectError, match="fit to pad or crop"):
        tasks.make_tasks(config)
    config.data.fit = "pad"
    (task,) = tasks.make_tasks(config)
    assert task.load().inputs.shape == (1, 16, 16, 3)
    # Nothing is prepared, so the training data are procedural shapes, seen from 2.6.
    said = "cameras are at a distance of 1, those of the training data at 2.6; --config.data.scale=2.6 would make them"
    assert said in capsys.readouterr().out
    config.data.scale = 2.6
    tasks.make_tasks(config)
    assert capsys.readouterr().out == ""
    config.sample.object = str(tmp_path / "narrow")
    write_nerfstudio(tmp_path / "narrow", *make_scene(96, 64, radius=4.0, focal=192))
    config.data.scale = 0.65
    tasks.make_tasks(config)
    assert "field of view is 28.1 degrees, that of the training data 52" in capsys.readouterr().out
    config.data.check_cameras = False
    tasks.make_tasks(config)
    assert capsys.readouterr().out == ""
