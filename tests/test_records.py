"""Conversion into records and reading them: exact, and complete or not there at all."""

import json
import re
import shutil
import socket
import sys

import jax
import numpy as np
import pytest
from synthetic import make_objects, make_views

from threedim.cameras import Camera
from threedim.data import convert, objects, png, records, srn
from threedim.data.objects import read_object
from threedim.data.views import BadObjectError
from threedim.errors import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    return {
        "train": make_objects(source / "train", count=4, views=5, channels=4),
        "test": make_objects(source / "test", count=2, views=7, seed=1),
    }


@pytest.fixture(scope="module")
def prepared(folders, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("data") / "records"
    convert.prepare(folders, out_dir)
    return out_dir


def test_round_trip(folders, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "moved")
    for split, originals in folders.items():
        dataset = records.open_split(tmp_path / "moved", split)
        assert dataset.names == [folder.name for folder in originals]
        assert (len(dataset), dataset.image_size) == (len(originals), 16)
        for index, folder in enumerate(originals):
            original, read = read_object(folder), dataset[index]
            assert (read.name, read.pngs, read.size) == (original.name, original.pngs, original.size)
            assert dataset.num_views(index) == len(original.pngs)
            for name in ("R", "t", "K"):
                found, expected = getattr(read.cameras, name), getattr(original.cameras, name)
                np.testing.assert_array_equal(found, expected, strict=True)
    assert "tensorflow" not in sys.modules


def test_views_decodes_only_what_is_asked_for(folders, prepared, monkeypatch):
    decoded, decode = [], png.decode_png
    monkeypatch.setattr(png, "decode_png", lambda data, size: decoded.append(data) or decode(data, size))
    dataset = records.open_split(prepared, "test")
    images, cameras = dataset.views(1, [6, 0], 8)
    assert decoded == [dataset[1].pngs[6], dataset[1].pngs[0]]
    expected_images, expected_cameras = read_object(folders["test"][1]).decode([6, 0], 8)
    np.testing.assert_array_equal(images, expected_images)
    np.testing.assert_array_equal(cameras.K, expected_cameras.K)
    np.testing.assert_array_equal(cameras.t, expected_cameras.t)
    for index, view in ((1, 7), (2, 0)):
        with pytest.raises(IndexError):
            dataset.views(index, [view])


def test_records_are_reused_for_the_same_source_only(folders, prepared, tmp_path):
    info = records.read_info(prepared)
    assert info.summary().startswith("train: 4 objects, 20 views of 16 px; test: 2 objects, 14 views of 16 px; finger")
    assert info.skipped == []
    before = (prepared / records.METADATA).stat().st_mtime_ns
    assert convert.prepare(folders, prepared) == info
    assert (prepared / records.METADATA).stat().st_mtime_ns == before
    assert [path.name for path in prepared.parent.iterdir()] == ["records"]
    with pytest.raises(ValueError, match=r"splits\.test: (.|\n)*object_000(.|\n)*delete"):
        convert.prepare({"train": folders["train"], "test": folders["test"][:1]}, prepared)
    with pytest.raises(ValueError, match=r"splits\.val: "):
        convert.prepare(folders | {"val": folders["test"]}, prepared)
    (tmp_path / "thesis").mkdir()
    with pytest.raises(FileExistsError, match=r"thesis .*no dataset\.json"):
        convert.prepare(folders, tmp_path / "thesis")


def test_fingerprint_changes_with_every_part(tmp_path):
    (folder,) = make_objects(tmp_path / "source", count=1)
    pose, image, intrinsics = folder / "pose/000001.txt", folder / "rgb/000001.png", folder / "intrinsics.txt"

    def fingerprints(name):
        info = convert.prepare({"train": [folder]}, tmp_path / name)
        return info.fingerprint, info.splits["train"].fingerprint

    seen = {fingerprints("first")}
    assert fingerprints("again") in seen
    numbers = pose.read_text().split()
    numbers[3] = str(float(numbers[3]) + 1e-5)
    pose.write_text(" ".join(numbers))
    seen.add(fingerprints("pose"))
    intrinsics.write_text(intrinsics.read_text().replace("8.25", "8.26"))
    seen.add(fingerprints("intrinsics"))
    # One pixel by one level; and one byte of the file that no pixel shows.
    images, _ = make_views()
    images[1, 3, 3, 0] ^= 1
    image.write_bytes(png.encode_png(images[1]))
    seen.add(fingerprints("pixel"))
    image.write_bytes(image.read_bytes() + b"\0")
    seen.add(fingerprints("byte"))
    folder = folder.rename(folder.parent / "renamed")
    seen.add(fingerprints("name"))
    assert len(seen) == 6


@pytest.mark.parametrize("bad", [0, 2])
def test_bad_objects_stop_the_conversion_or_are_left_out(tmp_path, capsys, monkeypatch, bad):
    # One object per shard: a shard may then be empty.
    monkeypatch.setattr(convert, "_SHARD_BYTES", 1)
    folders = make_objects(tmp_path / "source", count=3)
    (folders[bad] / "rgb/000002.png").write_bytes(b"")
    problem = f"{folders[bad]}/rgb/000002.png: "
    with pytest.raises(BadObjectError, match=problem):
        convert.prepare({"train": folders}, tmp_path / "out/records")
    assert list((tmp_path / "out").iterdir()) == []
    info = convert.prepare({"train": folders}, tmp_path / "records", on_bad="skip")
    assert info.splits["train"].names == [folder.name for folder in folders if folder != folders[bad]]
    assert [said.startswith(problem) for said in info.skipped] == [True]
    assert problem in capsys.readouterr().out
    dataset = records.open_split(tmp_path / "records", "train")
    assert [dataset[index].name for index in range(2)] == info.splits["train"].names
    assert convert.prepare({"train": folders}, tmp_path / "records", on_bad="skip") == info
    with pytest.raises(ValueError, match="on_bad is 'raise'"):
        convert.prepare({"train": folders}, tmp_path / "records", on_bad="raise")


def test_arguments_are_checked(tmp_path, folders):
    bad = make_objects(tmp_path / "bad", count=2)
    for folder in bad:
        (folder / "intrinsics.txt").unlink()
    for splits, out_dir, on_bad, message in (
        (folders, "records", "ignore", "on_bad must be"),
        (folders | {"test": []}, "records", "raise", "split 'test' has no object"),
        ({"train": folders["train"] + folders["test"][:1]}, "records", "raise", "2 objects .*'object_000'"),
        ({"train": bad}, "records", "skip", r"no valid objects.*object_000/intrinsics\.txt"),
    ):
        with pytest.raises(ValueError, match=message):
            convert.prepare(splits, tmp_path / out_dir, on_bad=on_bad)
    with pytest.raises(ValueError, match="local or mounted disk"):
        convert.prepare(folders, "gs://bucket/records")
    assert not (tmp_path / "records").exists()


def test_interrupted_conversion_starts_over_and_many_shards_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "_SHARD_BYTES", 8000)
    folders, read = make_objects(tmp_path / "source", count=7), read_object

    def interrupt_at_last(folder, settings, inside):
        if folder.name == "object_006":
            raise KeyboardInterrupt
        return read(folder, settings, inside)

    with monkeypatch.context() as patch:
        patch.setattr(objects, "read_object", interrupt_at_last)
        with pytest.raises(KeyboardInterrupt):
            convert.prepare({"train": folders}, tmp_path / "out/records")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(FileNotFoundError, match="--mode=prepare"):
        records.open_split(tmp_path / "out/records", "train")
    # What a killed process leaves behind.
    (tmp_path / f"out/.records.{socket.gethostname()}.9999999.0.incomplete/threedim_objects").mkdir(parents=True)
    convert.prepare({"train": folders}, tmp_path / "out/records")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["records"]
    assert len(list((tmp_path / "out/records").rglob("*array_record*"))) > 2
    dataset = records.open_split(tmp_path / "out/records", "train")
    assert [dataset[index].name for index in range(7)] == [folder.name for folder in folders]


def test_damaged_records_are_refused(prepared, tmp_path):
    with pytest.raises(ValueError, match=r"no split 'val'.* train, test"):
        records.open_split(prepared, "val")
    shutil.copytree(prepared, tmp_path / "copy")
    metadata = tmp_path / "copy/dataset.json"
    fields = json.loads(metadata.read_text())
    fields["splits"]["train"]["names"][0] = "someone_else"
    metadata.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="record 0 of split 'train' is 'object_000'"):
        records.open_split(tmp_path / "copy", "train")[0]
    fields["splits"]["train"]["fingerprint"] = "0" * 64
    metadata.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"dataset\.json is damaged \(its fingerprint is not that of its splits\)"):
        records.open_split(tmp_path / "copy", "train")
    fields["splits"]["train"]["fingerprint"] = records.read_info(prepared).splits["train"].fingerprint
    for column in ("names", "views", "sizes"):
        fields["splits"]["train"][column].pop()
    metadata.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"has 4 records, but dataset\.json lists 3"):
        records.open_split(tmp_path / "copy", "train")
    metadata.write_text(metadata.read_text()[:50])
    with pytest.raises(ValueError, match=r"dataset\.json is damaged"):
        records.open_split(tmp_path / "copy", "train")


@pytest.mark.parametrize(("num_views", "held_out"), [(50, 5), (251, 25), (10, 3), (4, 1), (5, 0), (3, 3)])
def test_split_views_are_disjoint_and_evenly_spread(num_views, held_out):
    known, held = records.split_views(num_views, held_out)
    assert (len(held), sorted([*known, *held])) == (held_out, list(range(num_views)))
    if held_out:  # the same distance from both ends, to one view
        assert abs(held[0] - (num_views - 1 - held[-1])) <= 1
        assert held_out == 1 or np.ptp(np.diff(held)) <= 1
    with pytest.raises(ValueError, match="cannot hold out"):
        records.split_views(num_views, num_views + 1)


def test_held_out_views(prepared):
    dataset = records.open_split(prepared, "train")
    known, held = dataset.without_held_out(2), dataset.only_held_out(2)
    assert (known.num_views(0), held.num_views(0)) == (3, 2)
    assert sorted(known[1].pngs + held[1].pngs) == sorted(dataset[1].pngs)
    jax.tree.map(np.testing.assert_array_equal, held.views(1, [1]), dataset.views(1, [3]))
    assert len({dataset.fingerprint, known.fingerprint, held.fingerprint}) == 3
    assert dataset.without_held_out(0) is dataset
    with pytest.raises(ValueError, match="cannot hold out 5 of the 5 views of object_000"):
        dataset.without_held_out(5)
    with pytest.raises(ValueError, match="no views are held out"):
        dataset.only_held_out(0)


def test_views_with_their_own_intrinsics(tmp_path):
    images, cameras = make_views(views=3)
    K = np.array(cameras.K) * np.asarray([[[1.0]], [[1.25]], [[1.5]]], np.float32)
    K[:, 2, 2], K[:, :2, 2] = 1, 8
    srn.write_object(tmp_path / "source/one", images, Camera(cameras.R, cameras.t, K))
    assert not (tmp_path / "source/one/intrinsics.txt").exists()
    convert.prepare({"train": [tmp_path / "source/one"]}, tmp_path / "records")
    _, read = records.open_split(tmp_path / "records", "train").views(0, [2, 0])
    np.testing.assert_array_equal(read.K, K[[2, 0]])


def test_what_the_folder_says_is_never_imported(prepared, tmp_path, monkeypatch):
    """TFDS would import the modules that these files name."""
    out = tmp_path / "records"
    shutil.copytree(prepared, out)
    (tmp_path / "payload.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for path in out.glob("*/*/*.json"):
        path.write_text(re.sub(r"tensorflow_datasets\.[\w.]+", "payload.Tensor", path.read_text()))
    assert "payload" in next(out.glob("*/*/features.json")).read_text()
    assert records.open_split(out, "train")[0].pngs == records.open_split(prepared, "train")[0].pngs
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["", "/tmp/x", "a/b", "..\\x", ".hidden", "a\0", "x" * 201])
def test_names_cannot_leave_the_folder(prepared, tmp_path, name):
    out = tmp_path / "records"
    shutil.copytree(prepared, out)
    content = json.loads((out / records.METADATA).read_text())
    content["splits"]["train"]["names"][1] = name
    (out / records.METADATA).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"dataset\.json: .* cannot be the name of an object"):
        records.open_split(out, "train")


def test_damaged_records_are_named(prepared, tmp_path):
    out = tmp_path / "records"
    shutil.copytree(prepared, out)
    (path,) = out.glob("*/*/*-train.array_record-*")
    data = path.read_bytes()
    for cut in (0, 65536, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"records: split 'train' is damaged"):
            list(records.open_split(out, "train"))
    path.unlink()
    with pytest.raises(UserError, match="files of split 'train' are missing"):
        records.open_split(out, "train")
