"""Conversion into records and reading them: exact, whole or not at all, and without TensorFlow."""

import json
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from synthetic import make_objects, make_views

from threedim.cameras import Camera
from threedim.data import convert, records, srn


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


def test_round_trip(folders, prepared):
    for split, originals in folders.items():
        dataset = records.open_split(prepared, split)
        assert len(dataset) == len(originals)
        assert dataset.names == [folder.name for folder in originals]
        assert dataset.image_size == 16
        for index, folder in enumerate(originals):
            original, read = srn.read_object(folder), dataset[index]
            assert (read.name, read.pngs, read.size) == (original.name, original.pngs, original.size)
            assert dataset.num_views(index) == len(original.pngs)
            for name in ("R", "t", "K"):
                np.testing.assert_array_equal(getattr(read.cameras, name), getattr(original.cameras, name))
                assert getattr(read.cameras, name).dtype == np.float32


def test_views(folders, prepared):
    dataset = records.open_split(prepared, "test")
    images, cameras = dataset.views(1, [6, 0], 8)
    expected_images, expected_cameras = srn.read_object(folders["test"][1]).decode([6, 0], 8)
    np.testing.assert_array_equal(images, expected_images)
    np.testing.assert_array_equal(cameras.K, expected_cameras.K)
    np.testing.assert_array_equal(cameras.t, expected_cameras.t)
    with pytest.raises(IndexError):
        dataset.views(1, [7])
    with pytest.raises(IndexError):
        dataset.views(2, [0])
    with pytest.raises(ValueError, match="cannot be averaged"):
        dataset.views(1, [0], 32)


def test_only_the_views_asked_for_are_decoded(prepared, monkeypatch):
    decoded = []
    decode = srn.images_lib.decode_png
    monkeypatch.setattr(srn.images_lib, "decode_png", lambda png, size: decoded.append(png) or decode(png, size))
    dataset = records.open_split(prepared, "train")
    dataset.views(0, [3, 1])
    assert decoded == [dataset[0].pngs[3], dataset[0].pngs[1]]


def test_summary_and_metadata(folders, prepared, capsys):
    info = records.read_info(prepared)
    assert info.summary().startswith("train: 4 objects, 20 views of 16 px; test: 2 objects, 14 views of 16 px; finger")
    assert info.skipped == []
    # Again: reused, not converted.
    before = (prepared / records.METADATA).stat().st_mtime_ns
    assert convert.prepare(folders, prepared) == info
    assert (prepared / records.METADATA).stat().st_mtime_ns == before
    assert [path.name for path in prepared.parent.iterdir()] == ["records"]
    capsys.readouterr()


def test_another_source_is_refused_with_the_difference(folders, prepared):
    with pytest.raises(ValueError, match=r"splits\.test: .*\(2 long\) → .*object_000(.|\n)*delete"):
        convert.prepare({"train": folders["train"], "test": folders["test"][:1]}, prepared)
    with pytest.raises(ValueError, match=r"splits\.val: \(absent\) → "):
        convert.prepare(folders | {"val": folders["test"]}, prepared)


def test_a_folder_of_something_else_is_left_alone(folders, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("words")
    with pytest.raises(FileExistsError, match=r"holds no dataset\.json"):
        convert.prepare(folders, tmp_path / "thesis")
    assert (tmp_path / "thesis/chapter.txt").read_text() == "words"


def test_fingerprint_changes_with_every_part(tmp_path):
    (folder,) = make_objects(tmp_path / "source", count=1)
    pose, png, intrinsics = folder / "pose/000001.txt", folder / "rgb/000001.png", folder / "intrinsics.txt"

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
    png.write_bytes(srn.images_lib.encode_png(images[1]))
    seen.add(fingerprints("pixel"))
    png.write_bytes(png.read_bytes() + b"\0")
    seen.add(fingerprints("byte"))
    folder.rename(folder.parent / "renamed")
    folder = folder.parent / "renamed"
    seen.add(fingerprints("name"))
    assert len(seen) == 6


def test_bad_object_stops_with_its_path_and_leaves_nothing(tmp_path):
    folders = make_objects(tmp_path / "source", count=3)
    (folders[1] / "pose/000002.txt").unlink()
    with pytest.raises(srn.BadObjectError, match=r"object_001/pose/000002\.txt: pose is missing"):
        convert.prepare({"train": folders}, tmp_path / "out/records")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_bad_objects_can_be_left_out(tmp_path, capsys, monkeypatch, bad):
    # One object per shard: a shard may then be empty.
    monkeypatch.setattr(convert, "_SHARD_BYTES", 1)
    folders = make_objects(tmp_path / "source", count=3)
    (folders[bad] / "rgb/000002.png").write_bytes(b"")
    info = convert.prepare({"train": folders}, tmp_path / "records", on_bad="skip")
    assert info.splits["train"].names == [folder.name for folder in folders if folder != folders[bad]]
    assert len(info.skipped) == 1
    assert f"object_00{bad}/rgb/000002.png: not a whole PNG" in info.skipped[0]
    assert f"left out: {folders[bad]}/rgb/000002.png" in capsys.readouterr().out
    assert json.loads((tmp_path / "records/dataset.json").read_text())["skipped"] == info.skipped
    dataset = records.open_split(tmp_path / "records", "train")
    assert [dataset[index].name for index in range(2)] == info.splits["train"].names
    assert convert.prepare({"train": folders}, tmp_path / "records", on_bad="skip") == info
    with pytest.raises(ValueError, match=r"leaves out 1 bad objects.*on_bad is 'raise'"):
        convert.prepare({"train": folders}, tmp_path / "records", on_bad="raise")


def test_nothing_good_left(tmp_path):
    folders = make_objects(tmp_path / "source", count=2)
    for folder in folders:
        (folder / "intrinsics.txt").unlink()
    with pytest.raises(ValueError, match=r"no good object; the first bad one: .*object_000/intrinsics\.txt"):
        convert.prepare({"train": folders}, tmp_path / "records", on_bad="skip")
    assert not (tmp_path / "records").exists()


def test_arguments_are_checked(tmp_path, folders):
    with pytest.raises(ValueError, match="on_bad must be"):
        convert.prepare(folders, tmp_path / "records", on_bad="ignore")
    with pytest.raises(ValueError, match="split 'test' has no object"):
        convert.prepare({"train": folders["train"], "test": []}, tmp_path / "records")
    with pytest.raises(ValueError, match="2 objects of one name, 'object_000'"):
        convert.prepare({"train": folders["train"] + folders["test"][:1]}, tmp_path / "records")
    with pytest.raises(ValueError, match="local or mounted disk"):
        convert.prepare(folders, "gs://bucket/records")


def test_many_shards_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "_SHARD_BYTES", 8000)
    folders = make_objects(tmp_path / "source", count=7)
    convert.prepare({"train": folders}, tmp_path / "records")
    assert len(list((tmp_path / "records").rglob("*array_record*"))) > 2
    dataset = records.open_split(tmp_path / "records", "train")
    assert [dataset[index].name for index in range(7)] == [folder.name for folder in folders]


def test_interruption_never_looks_finished(tmp_path, monkeypatch):
    folders = make_objects(tmp_path / "source", count=3)
    read = srn.read_object

    def interrupt_at_last(folder):
        if folder.name == "object_002":
            raise KeyboardInterrupt
        return read(folder)

    with monkeypatch.context() as patch:
        patch.setattr(srn, "read_object", interrupt_at_last)
        with pytest.raises(KeyboardInterrupt):
            convert.prepare({"train": folders}, tmp_path / "out/records")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(FileNotFoundError, match="no records were prepared"):
        records.open_split(tmp_path / "out/records", "train")
    convert.prepare({"train": folders}, tmp_path / "out/records")
    assert len(records.open_split(tmp_path / "out/records", "train")) == 3


def run_python(code, *arguments):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_killed_conversion_is_started_afresh(tmp_path):
    folders = make_objects(tmp_path / "source", count=3)
    result = run_python(
        """
        import os, sys
        from etils import epath
        from threedim.data import convert, srn
        read = srn.read_object
        srn.read_object = lambda folder: os._exit(9) if folder.name == "object_002" else read(folder)
        convert.prepare({"train": srn.find_objects(sys.argv[1])}, sys.argv[2])
        """,
        tmp_path / "source",
        tmp_path / "out/records",
    )
    assert result.returncode == 9, result.stderr
    assert not (tmp_path / "out/records").exists()
    assert (tmp_path / "out/.records.incomplete").exists()
    convert.prepare({"train": folders}, tmp_path / "out/records")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["records"]
    assert len(records.open_split(tmp_path / "out/records", "train")) == 3


def test_no_tensorflow_anywhere(tmp_path):
    make_objects(tmp_path / "source", count=3)
    result = run_python(
        """
        import sys
        from threedim.data import convert, pipeline, records, srn
        convert.prepare({"train": srn.find_objects(sys.argv[1])}, sys.argv[2])
        dataset = records.open_split(sys.argv[2], "train")
        batches = pipeline.train_batches(dataset, batch_size=2, size=16, seed=0)
        print(next(batches)["image"].shape)
        batches.close()
        assert "tensorflow" not in sys.modules
        """,
        tmp_path / "source",
        tmp_path / "records",
    )
    assert result.returncode == 0, result.stderr
    assert "(2, 2, 16, 16, 3)" in result.stdout


def test_a_data_set_says_what_it_has(prepared, tmp_path):
    with pytest.raises(ValueError, match="no split 'val'; it has train, test"):
        records.open_split(prepared, "val")
    shutil.copytree(prepared, tmp_path / "copy")
    metadata = tmp_path / "copy/dataset.json"
    fields = json.loads(metadata.read_text())
    fields["splits"]["train"]["names"][0] = "someone_else"
    metadata.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="record 0 of split 'train' is 'object_000'"):
        records.open_split(tmp_path / "copy", "train")[0]
    for column in ("names", "views", "sizes"):
        fields["splits"]["train"][column].pop()
    metadata.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"has 4 records, but dataset\.json says 3"):
        records.open_split(tmp_path / "copy", "train")
    metadata.write_text(metadata.read_text()[:50])
    with pytest.raises(ValueError, match=r"dataset\.json is damaged"):
        records.open_split(tmp_path / "copy", "train")


def test_records_can_be_moved(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "elsewhere")
    assert records.open_split(tmp_path / "elsewhere", "test")[1].pngs == records.open_split(prepared, "test")[1].pngs


@pytest.mark.parametrize(("num_views", "held_out"), [(50, 5), (251, 25), (10, 3), (4, 1), (5, 0), (3, 3)])
def test_split_views_parts_and_spreads(num_views, held_out):
    known, held = records.split_views(num_views, held_out)
    assert len(held) == held_out
    assert sorted([*known, *held]) == list(range(num_views))
    if held_out > 1:
        assert np.ptp(np.diff(held)) <= 1
    with pytest.raises(ValueError, match="cannot hold out"):
        records.split_views(num_views, num_views + 1)


def test_held_out_views(prepared):
    dataset = records.open_split(prepared, "train")
    known, held = dataset.without_held_out(2), dataset.only_held_out(2)
    assert (known.num_views(0), held.num_views(0)) == (3, 2)
    assert sorted(known[1].pngs + held[1].pngs) == sorted(dataset[1].pngs)
    np.testing.assert_array_equal(held.views(1, [1])[0], dataset.views(1, [3])[0])
    np.testing.assert_array_equal(held.views(1, [1])[1].t, dataset.views(1, [3])[1].t)
    assert len({dataset.fingerprint, known.fingerprint, held.fingerprint}) == 3
    assert dataset.without_held_out(0) is dataset
    with pytest.raises(ValueError, match="cannot hold out 5 of the 5 views of object_000"):
        dataset.without_held_out(5)
    with pytest.raises(ValueError, match="no views are held out"):
        dataset.only_held_out(0)


def test_views_with_their_own_intrinsics(tmp_path):
    images, cameras = make_views(views=3)
    K = np.array(cameras.K) * np.asarray([1.0, 1.25, 1.5])[:, None, None]
    K[:, 2, 2] = 1
    K[:, :2, 2] = 8
    srn.write_object(tmp_path / "source/one", images, Camera(cameras.R, cameras.t, K.astype(np.float32)))
    convert.prepare({"train": [tmp_path / "source/one"]}, tmp_path / "records")
    _, read = records.open_split(tmp_path / "records", "train").views(0, [2, 0])
    np.testing.assert_array_equal(read.K, K.astype(np.float32)[[2, 0]])
