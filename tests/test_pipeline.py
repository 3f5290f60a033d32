"""The stream of training pairs: a pure function of (seed, step), uniform, and matched with its cameras."""

import collections
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from commands import REPOSITORY, run_python
from synthetic import make_objects, make_views

from threedim.data import convert, pipeline, records

OBJECTS, VIEWS = 5, 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline")
    convert.prepare({"train": make_objects(root / "source", OBJECTS, VIEWS)}, root / "records")
    return records.open_split(root / "records", "train")


class Numbers:
    """A data set without files: t holds the number of the object and of the view."""

    image_size = 1

    def __init__(self, count, views):
        self.names = [str(index) for index in range(count)]
        self._cameras = make_views(views, 1)[1]

    def __len__(self):
        return len(self.names)

    def num_views(self, index):
        return len(self._cameras)

    def views(self, index, indices, size):
        cameras = self._cameras[np.asarray(indices)]
        cameras.t[:] = np.stack([np.full(2, index), indices, np.zeros(2)], axis=-1)
        return np.zeros((2, 1, 1, 3), np.uint8), cameras


def take(count, dataset, **options):
    with pipeline.train_batches(dataset, **({"batch_size": 8, "size": 16, "seed": 3} | options)) as batches:
        return [next(batches) for _ in range(count)]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_batches_hold_matching_images_and_cameras(dataset):
    (batch,) = take(1, dataset)
    assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in batch.items()} == {
        "image": ((8, 2, 16, 16, 3), "uint8"),
        "R": ((8, 2, 3, 3), "float32"),
        "t": ((8, 2, 3), "float32"),
        "K": ((8, 2, 3, 3), "float32"),
    }
    objects = [make_views(VIEWS, 16, index) for index in range(OBJECTS)]
    known = {camera.t.tobytes(): (index, view) for index, (_, c) in enumerate(objects) for view, camera in enumerate(c)}
    for row in range(8):
        (index, one), (other, two) = (known[center.tobytes()] for center in batch["t"][row])
        assert index == other
        assert one != two
        images, cameras = objects[index]
        np.testing.assert_array_equal(batch["image"][row], images[[one, two]])
        np.testing.assert_array_equal(batch["R"][row], cameras.R[[one, two]])
        np.testing.assert_array_equal(batch["K"][row], cameras.K[[one, two]])
    (half,) = take(1, dataset, size=8)
    means = batch["image"].reshape(8, 2, 8, 2, 8, 2, 3).astype(np.float64).mean(axis=(3, 5))
    assert np.abs(half["image"] - means).max() <= 0.5
    np.testing.assert_allclose(half["K"][..., :2, :], batch["K"][..., :2, :] / 2, rtol=1e-6)
    np.testing.assert_array_equal(half["t"], batch["t"])


def test_the_stream_depends_on_seed_and_step_alone(dataset):
    batches = take(7, dataset)
    assert len({batch["t"].tobytes() for batch in batches}) == 7
    assert_same(take(3, dataset, start_step=4), batches[4:])
    assert not np.array_equal(take(1, dataset, seed=4)[0]["t"], batches[0]["t"])
    for rows in (range(4, 8), [3], [0, 1, 6, 7], [7, 2]):
        part = [{name: leaf[list(rows)] for name, leaf in batch.items()} for batch in batches[2:4]]
        assert_same(take(2, dataset, start_step=2, rows=rows), part)
    # Reaching a step far ahead takes no time.
    take(1, dataset, start_step=10**10)


@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_do_not_change_the_stream(dataset, num_workers):
    options = {"start_step": 1, "rows": [1, 2, 5]}
    assert_same(take(5, dataset, **options, num_workers=num_workers), take(5, dataset, **options))


def test_objects_and_pairs_are_uniform():
    batches = take(75, Numbers(OBJECTS, VIEWS), batch_size=64, size=1)
    pairs = [(int(index), int(one), int(two)) for b in batches for (index, one, _), (_, two, _) in b["t"]]
    objects = collections.Counter(index for index, _, _ in pairs)
    assert max(objects.values()) - min(objects.values()) <= 0.02 * len(pairs)
    counts = collections.Counter(pairs)
    assert all(one != two for _, one, two in counts)
    cells = OBJECTS * VIEWS * (VIEWS - 1)
    expected = len(pairs) / cells
    chi_square = sum((counts[pair] - expected) ** 2 for pair in counts) / expected
    chi_square += (cells - len(counts)) * expected
    # At most 149 degrees of freedom; five standard deviations.
    assert abs(chi_square - (cells - 1)) < 5 * np.sqrt(2 * cells)


def test_an_epoch_has_every_object_once():
    """With enough objects that Grain shuffles one epoch at a time."""
    count = pipeline._MIN_SHUFFLED + 3
    orders = [batch["t"][:, 0, 0] for batch in take(2, Numbers(count, 2), batch_size=count, size=1)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(count))
    assert not np.array_equal(*orders)


def test_held_out_views_are_never_sampled(dataset):
    hidden = {center.tobytes() for index in range(OBJECTS) for center in dataset.only_held_out(2)[index].cameras.t}
    batches = take(30, dataset.without_held_out(2))
    sampled = {center.tobytes() for batch in batches for center in batch["t"].reshape(-1, 3)}
    assert len(sampled) == OBJECTS * (VIEWS - 2)
    assert not sampled & hidden


def test_arguments_are_checked(dataset):
    for options, message in (
        ({"rows": [0, 8]}, r"rows \[0, 8\] .*batch of 8"),
        ({"rows": []}, "rows"),
        ({"batch_size": 0}, "batch of 0"),
        ({"size": 32}, "16 px .*32"),
        ({"start_step": -1}, "start_step -1"),
        ({"seed": -1}, "seed -1"),
        ({"num_workers": -1}, "num_workers -1"),
    ):
        with pytest.raises(ValueError, match=message):
            take(1, dataset, **options)
    with pytest.raises(ValueError, match="object object_000 has 1 view"):
        take(1, dataset.only_held_out(1))
    batches = pipeline.train_batches(dataset, batch_size=2, size=16, seed=0)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


class Broken(Numbers):
    def views(self, index, indices, size):
        raise ValueError("the disk is on fire")


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_error_while_reading_is_raised(num_workers):
    with pytest.raises(ValueError, match="the disk is on fire"):
        take(1, Broken(1, 2), size=1, num_workers=num_workers)


@pytest.mark.slow
def test_workers_outlive_the_signals_that_stop_a_run(dataset):
    expected = take(40, dataset)
    with pipeline.train_batches(dataset, batch_size=8, size=16, seed=3, num_workers=1) as batches:
        taken = [next(batches)]
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
        taken += [next(batches) for _ in range(39)]
    assert_same(taken, expected)
    worker.join(timeout=10)
    assert not multiprocessing.active_children()


class Large(Numbers):
    """Batches larger than a pipe."""

    def views(self, index, indices, size):
        return np.zeros((2, 64, 64, 3), np.uint8), super().views(index, indices, size)[1]


LARGE = """
import sys, time
from test_pipeline import Large
from threedim.data import pipeline

if __name__ == "__main__":
    batches = pipeline.train_batches(Large(5, 4), batch_size=64, size=1, seed=0, num_workers=int(sys.argv[1]))
    next(batches)
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))  # the pipes fill
    began = time.monotonic()
    batches.close()
    print(time.monotonic() - began)
"""


@pytest.mark.slow
def test_workers_with_full_pipes_stop_in_seconds():
    done = run_python("-c", LARGE, 12, 20)
    assert float(done.stdout.split()[1]) < 10, done.stderr


def test_workers_end_when_their_process_is_killed():
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY}/tests"}
    process = subprocess.Popen(
        [sys.executable, "-c", LARGE, "1", "60"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    threads = pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")  # each lists what it has started
    workers = [worker for thread in threads for worker in thread.read_text().split()]
    workers = [pid for pid in workers if b"spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert workers
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while any(pathlib.Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.stdout.close()


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_process_ends_although_nobody_closed_the_stream(dataset, num_workers):
    code = """
        import sys
        from threedim.data import pipeline, records

        if __name__ == "__main__":
            dataset = records.open_split(sys.argv[1], "train")
            batches = pipeline.train_batches(dataset, batch_size=4, size=16, seed=0, num_workers=int(sys.argv[2]))
            next(batches)
            assert "tensorflow" not in sys.modules
            print("done")
        """
    result = run_python("-W", "error", "-c", textwrap.dedent(code), dataset._out_dir, num_workers)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "done", "")
