"""Logs of a training run."""

import io
import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from threedim.training import metrics as metrics_lib
from threedim.training.metrics import MetricWriter


def read_lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def read_events(workdir) -> list[event_pb2.Event]:
    """TensorBoard's files in the order of their making: length (8 bytes), its CRC (4), event, its CRC (4)."""
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def read_scalars(workdir) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in read_events(workdir):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_scalars_are_in_both_files(tmp_path):
    with MetricWriter(tmp_path / "run") as writer:
        writer.scalars(1, {"loss": 0.5, "loss_by_noise/quartile_1": jnp.float32(0.25)})
        assert read_lines(tmp_path / "run")[0]["loss"] == 0.5
        writer.scalars(2, {"loss": np.float64(0.125), "n": 3})
    first, second = read_lines(tmp_path / "run")
    assert second["time"] >= first["time"] > 1.6e9
    assert first | {"time": 0} == {"step": 1, "time": 0, "loss": 0.5, "loss_by_noise/quartile_1": 0.25}
    assert (second["step"], second["n"]) == (2, 3.0)
    assert read_scalars(tmp_path / "run") == {
        "loss": [(1, 0.5), (2, 0.125)],
        "loss_by_noise/quartile_1": [(1, 0.25)],
        "n": [(2, 3.0)],
    }


def test_numbers_that_are_not_finite_are_null(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(1, {"a": float("nan"), "b": float("inf"), "c": 1.0})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    content = json.loads(line, parse_constant=pytest.fail)
    assert (content["a"], content["b"], content["c"]) == (None, None, 1.0)
    assert np.isnan(read_scalars(tmp_path)["a"][0][1])


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("scalars", {"x": np.zeros(3)}, r"cannot log 'x': \(3,\)"),
        ("scalars", {"step": 1.0}, "'step': the name is taken"),
        ("images", {"a/b": np.zeros((2, 2, 3), np.uint8)}, "it names a file"),
        ("images", {"..": np.zeros((2, 2, 3), np.uint8)}, "it names a file"),
        ("images", {"a": np.zeros((2, 2, 3), np.float32)}, r"got float32 \(2, 2, 3\)"),
    ],
)
def test_what_cannot_be_logged_is_refused(tmp_path, kind, values, message):
    with MetricWriter(tmp_path) as writer, pytest.raises(ValueError, match=message):
        getattr(writer, kind)(1, values)
    assert read_lines(tmp_path) == []


def test_pictures_are_in_both_places(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    with MetricWriter(tmp_path) as writer:
        writer.images(12, {"held_out": picture})
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "samples" / "held_out_0000012.png")), picture)
    assert len(list((tmp_path / "samples").iterdir())) == 1
    (value,) = [v for e in read_events(tmp_path) if e.step == 12 for v in e.summary.value if v.tag == "held_out"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string))), picture)


def test_resuming_leaves_no_step_twice(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3, 4):
            writer.scalars(step, {"loss": step / 10})
    with MetricWriter(tmp_path, start_step=2) as writer:
        assert [line["step"] for line in read_lines(tmp_path)] == [1, 2]
        for step in (3, 4, 5):
            writer.scalars(step, {"loss": step / 100})
    lines = read_lines(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["loss"] for line in lines] == [0.1, 0.2, 0.03, 0.04, 0.05]
    with MetricWriter(tmp_path / "anew") as writer:
        writer.scalars(1, {"loss": 1.0})
    with MetricWriter(tmp_path / "anew"):
        assert read_lines(tmp_path / "anew") == []
    # TensorBoard hides what stands before a start event from its step on.
    starts = [event.step for event in read_events(tmp_path) if event.HasField("session_log")]
    assert starts == [0, 3]


def test_a_line_cut_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1}\n{"step": 2, "lo')
    with MetricWriter(tmp_path, start_step=2) as writer:
        writer.scalars(3, {"loss": 1.0})
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 3]
    path.write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 1}')
    with MetricWriter(tmp_path, start_step=2) as writer:
        writer.scalars(3, {"loss": 1.0})
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("bad", ["nonsense", "[1, 2]", '{"loss": 1}', '{"step": 1, "loss": "a"}'])
def test_a_broken_line_is_named(tmp_path, bad):
    content = f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n'
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not a line of metrics"):
        MetricWriter(tmp_path, start_step=2)
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not a line of metrics"):
        metrics_lib.read(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == content


def test_disabled_writes_nothing(tmp_path):
    with MetricWriter(tmp_path / "run", enabled=False) as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.images(1, {"a": np.zeros((2, 2, 3), np.uint8)})
    assert not (tmp_path / "run").exists()


def test_closing_twice_and_writing_after_it(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.close()
    writer.scalars(2, {"loss": 1.0})
    assert [line["step"] for line in read_lines(tmp_path)] == [1]


def test_object_stores_get_the_whole_file_now_and_then(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 9}\n')
    monkeypatch.setattr(metrics_lib.files, "is_remote", lambda path: True)
    with MetricWriter(tmp_path, start_step=1) as writer:
        writer.scalars(2, {"loss": 1.0})
        assert [line["step"] for line in read_lines(tmp_path)] == [1], "not due yet"
        monkeypatch.setattr(metrics_lib, "_REMOTE_INTERVAL", -1.0)
        writer.scalars(3, {"loss": 1.0})
        assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 3]
        monkeypatch.setattr(metrics_lib, "_REMOTE_INTERVAL", 1e9)
        writer.scalars(4, {"loss": 1.0})
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 3, 4]
