"""The stream of training pairs: a pure function of (seed, step), uniform, and matched with its cameras."""

import collections
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from synthetic import make_objects, make_views

from threedim.data import convert, pipeline, records

OBJECTS, VIEWS = 5, 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline")
    convert.prepare({"train": make_objects(root / "source", OBJECTS, VIEWS)}, root / "records")
    return records.open_split(root / "records", "train")


def take(count, dataset, **options):
    """The first ``count`` batches."""
    options = {"batch_size": 8, "size": 16, "seed": 3} | options
    with pipeline.train_batches(dataset, **options) as batches:
        return [next(batches) for _ in range(count)]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def identify(dataset, batch):
    """(object, first view, second view) of each pair, by its camera centers."""
    known = {}
    for index in range(len(dataset)):
        for view, center in enumerate(dataset[index].cameras.t):
            known[center.tobytes()] = (index, view)
    found = []
    for first, second in batch["t"]:
        (index, one), (other, two) = known[first.tobytes()], known[second.tobytes()]
        assert index == other
        found.append((index, one, two))
    return found


def test_batches_hold_matching_pictures_and_cameras(dataset):
    (batch,) = take(1, dataset)
    assert {name: (leaf.shape, leaf.dtype.name) for name, leaf in batch.items()} == {
        "image": ((8, 2, 16, 16, 3), "uint8"),
        "R": ((8, 2, 3, 3), "float32"),
        "t": ((8, 2, 3), "float32"),
        "K": ((8, 2, 3, 3), "float32"),
    }
    for row, (index, one, two) in enumerate(identify(dataset, batch)):
        assert one != two
        images, cameras = make_views(VIEWS, 16, index)
        np.testing.assert_array_equal(batch["image"][row], images[[one, two]])
        np.testing.assert_array_equal(batch["R"][row], cameras.R[[one, two]])
        np.testing.assert_array_equal(batch["K"][row], cameras.K[[one, two]])


def test_resized_pictures_have_resized_intrinsics(dataset):
    (full,), (half,) = take(1, dataset), take(1, dataset, size=8)
    means = full["image"].reshape(8, 2, 8, 2, 8, 2, 3).astype(np.float64).mean(axis=(3, 5))
    assert np.abs(half["image"] - means).max() <= 0.5
    np.testing.assert_allclose(half["K"][..., :2, :], full["K"][..., :2, :] / 2, rtol=1e-6)
    np.testing.assert_array_equal(half["t"], full["t"])


def test_a_restart_goes_on_where_it_was(dataset):
    batches = take(7, dataset)
    assert_same(take(3, dataset, start_step=4), batches[4:])
    assert len({batch["t"].tobytes() for batch in batches}) == 7
    # Far ahead: at once, not by counting up to there.
    take(1, dataset, start_step=10**10)


@pytest.mark.parametrize("rows", [range(8), range(4, 8), [3], [0, 1, 6, 7], [7, 2]])
def test_rows_of_a_batch_are_those_of_the_whole(dataset, rows):
    whole = take(3, dataset, start_step=2)
    part = take(3, dataset, start_step=2, rows=rows)
    for step in range(3):
        for name, leaf in whole[step].items():
            np.testing.assert_array_equal(part[step][name], leaf[list(rows)])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_do_not_change_the_stream(dataset, num_workers):
    expected = take(5, dataset, start_step=1, rows=[1, 2, 5])
    assert_same(
        take(5, dataset, start_step=1, rows=[1, 2, 5], num_workers=num_workers),
        expected,
    )


def test_seeds_differ(dataset):
    assert not np.array_equal(take(1, dataset)[0]["t"], take(1, dataset, seed=4)[0]["t"])


def test_objects_and_pairs_are_uniform(dataset):
    pairs = [pair for batch in take(75, dataset, batch_size=64) for pair in identify(dataset, batch)]
    # Every object equally often, as far as whole epochs go.
    objects = collections.Counter(index for index, _, _ in pairs)
    assert max(objects.values()) - min(objects.values()) <= 0.02 * len(pairs)
    counts = collections.Counter(pairs)
    assert all(one != two for _, one, two in counts)
    cells = OBJECTS * VIEWS * (VIEWS - 1)
    expected = len(pairs) / cells
    chi_square = sum((counts[pair] - expected) ** 2 for pair in counts) / expected
    chi_square += (cells - len(counts)) * expected
    # 149 degrees of freedom or fewer; five standard deviations.
    assert abs(chi_square - (cells - 1)) < 5 * np.sqrt(2 * cells)


def test_an_epoch_has_every_object_once(tmp_path):
    count = pipeline._MIN_SHUFFLED + 3

    class Many:
        """As many objects as make Grain shuffle one epoch at a time; the picture tells the object."""

        names = [str(index) for index in range(count)]  # noqa: RUF012
        image_size = 1

        def __len__(self):
            return count

        def num_views(self, index):
            return 2

        def views(self, index, indices, size):
            _, cameras = make_views(2, 1)
            return np.full((2, 1, 1, 3), index % 256, np.uint8), cameras[np.asarray(indices)]

    batches = take(2, Many(), batch_size=count, size=1)
    orders = [batch["image"][:, 0, 0, 0, 0] for batch in batches]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.sort(np.arange(count) % 256))
    assert not np.array_equal(*orders)


def test_held_out_views_are_never_drawn(dataset):
    known, held_out = dataset.without_held_out(2), dataset.only_held_out(2)
    hidden = {center.tobytes() for index in range(OBJECTS) for center in held_out[index].cameras.t}
    batches = take(30, known)
    drawn = {center.tobytes() for batch in batches for center in batch["t"].reshape(-1, 3)}
    assert len(drawn) == OBJECTS * (VIEWS - 2)
    assert not drawn & hidden


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": [0, 8]}, r"rows \[0, 8\] must be some of a batch of 8"),
        ({"rows": []}, "rows"),
        ({"batch_size": 0}, "batch of 0"),
        ({"size": 32}, "16 px cannot be averaged down to 32"),
        ({"start_step": -1}, "start_step -1"),
        ({"seed": -1}, "seed -1"),
        ({"num_workers": -1}, "num_workers -1"),
    ],
)
def test_arguments_are_checked(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        take(1, dataset, **options)


def test_a_pair_needs_two_views(dataset):
    with pytest.raises(ValueError, match="object object_000 has 1 view"):
        take(1, dataset.only_held_out(1))


def test_workers_outlive_the_signals_that_stop_a_run(dataset):
    expected = take(40, dataset)
    with pipeline.train_batches(dataset, batch_size=8, size=16, seed=3, num_workers=1) as batches:
        taken = [next(batches)]
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
        taken += [next(batches) for _ in range(39)]
    assert_same(taken, expected)
    assert not multiprocessing.active_children()


def test_closing(dataset):
    batches = pipeline.train_batches(dataset, batch_size=2, size=16, seed=0)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_a_worker_that_fails_says_why():
    class Broken:
        names = ("one",)
        image_size = 16

        def __len__(self):
            return 1

        def num_views(self, index):
            return 2

        def views(self, index, indices, size):
            raise ValueError("the disk is on fire")

    for num_workers in (0, 1):
        with pytest.raises(ValueError, match="the disk is on fire"):
            take(1, Broken(), num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_process_ends_although_nobody_closed_the_stream(dataset, num_workers):
    code = """
        import sys
        from threedim.data import pipeline, records

        if __name__ == "__main__":
            dataset = records.open_split(sys.argv[1], "train")
            batches = pipeline.train_batches(dataset, batch_size=4, size=16, seed=0, num_workers=int(sys.argv[2]))
            next(batches)
            print("done")
        """
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(dataset._out_dir), str(num_workers)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "done", "")
