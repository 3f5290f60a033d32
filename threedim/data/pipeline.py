"""Batches of view pairs for training, read with Grain. The stream is a pure function of (seed, step)."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import sys
import weakref
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags
from grain._src.python.dataset.transformations import process_prefetch

from threedim import workers
from threedim.data.records import ObjectDataset
from threedim.errors import UserError

_MIN_SHUFFLED = 1024
# Batches that each worker reads ahead.
_AHEAD = 2
# Grain stops its workers one after another, and waits 25 s for each that is still writing to its full pipe, before it
# kills it. Nothing is lost: a batch depends on its number alone.
process_prefetch._PROCESS_KILL_TIMEOUT_S = 0.2
_open_streams = weakref.WeakSet()


class Batches(contextlib.AbstractContextManager, Iterator[dict[str, np.ndarray]]):
    """An endless stream of batches. ``close()``, its ``with`` block and the end of the program stop its processes."""

    def __init__(self, iterator: grain.DatasetIterator):
        self._iterator = iterator
        iterator.start_prefetch()  # its processes start while the caller compiles
        _open_streams.add(self)

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            raise UserError("this stream of batches is closed")
        return next(self._iterator)

    def close(self) -> None:
        """Stops threads and worker processes. Closing again has no effect."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __exit__(self, *exception) -> None:
        self.close()


@atexit.register
def _close_streams() -> None:
    # Grain's own cleanup runs when modules are already being torn down, and fails with missing names.
    for batches in list(_open_streams):
        batches.close()


def train_batches(
    dataset: ObjectDataset,
    *,
    batch_size: int,
    size: int,
    seed: int,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
    num_workers: int = 0,
) -> Batches:
    """Endless batches of pairs: two distinct views of one object, sampled uniformly [7.2].

    Each epoch has every object once, in a new random order (with fewer than 1024 objects, several epochs are shuffled
    together). The stream does not depend on the start step, the number of workers or the choice of rows.

    Args:
      dataset: objects with at least two views each.
      batch_size: pairs per step.
      size: height and width in pixels; images are downsampled by area and intrinsics rescaled.
      seed: seed of the order of objects and of the choice of views, at least 0.
      start_step: the step of the first batch; any step is reached at once.
      rows: rows of each batch to return, in this order; defaults to all.
      num_workers: processes that read and decode; 0 uses a thread of this process.

    Returns:
      An iterator over dicts with B = the number of rows and frame 0 the clean view, frame 1 the target:
      ``image`` (B, 2, size, size, 3) uint8; ``R`` (B, 2, 3, 3), ``t`` (B, 2, 3), ``K`` (B, 2, 3, 3) float32.

    Raises:
      UserError: if an object has fewer than two views, images are smaller than ``size``, or a number is out of range.
    """
    rows = range(batch_size) if rows is None else rows
    if batch_size < 1 or not rows or not all(0 <= row < batch_size for row in rows):
        raise UserError(f"rows {list(rows)} must be rows of a batch of {batch_size} pairs")
    if seed < 0 or start_step < 0 or num_workers < 0:
        raise UserError(f"must be 0 or more: seed {seed}, start_step {start_step}, num_workers {num_workers}")
    if not 0 < size <= dataset.image_size:
        raise UserError(f"images of {dataset.image_size} px cannot be downsampled to {size} px; choose a smaller size")
    for index, name in enumerate(dataset.names):
        if dataset.num_views(index) < 2:
            raise UserError(f"object {name} has {dataset.num_views(index)} view to train on; a pair needs two")
    if not flags.FLAGS.is_parsed():
        # Grain hands absl flags to its worker processes; outside of an absl application, nobody has parsed them.
        flags.FLAGS.mark_as_parsed()

    # Grain's shuffle takes 2 ms per index with few objects and 0.03 ms with a thousand: shuffle several epochs at once.
    epochs = -(-_MIN_SHUFFLED // len(dataset))
    # The order matters. random_map must see the position of a pair in the whole stream, whoever reads it. Batching
    # before to_iter_dataset makes a batch a function of its number, so workers take turns by whole batches.
    pairs = grain.MapDataset.range(epochs * len(dataset)).seed(seed).shuffle().repeat()
    pairs = pairs.random_map(_SamplePair(dataset, size))
    if list(rows) != list(range(batch_size)):
        pairs = grain.MapDataset.source(_Rows(pairs, batch_size, tuple(rows)))
    batches = pairs.slice(slice(start_step * len(rows), None)).batch(len(rows), drop_remainder=True)
    # One thread, so that reading overlaps with the device's work; more cores are used by processes.
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD))
    if num_workers:
        # Through pipes: shared memory is only 64 MB in a container, and leaks when a process is killed.
        pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        stream = grain.experimental.WithOptionsIterDataset(stream, pipes).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=_AHEAD),
            worker_init_fn=workers.start,
        )
    return Batches(iter(stream))


@dataclasses.dataclass(frozen=True)
class _SamplePair(grain.transforms.RandomMap):
    """Maps an object's number (modulo the number of objects) to a pair of its views. Decodes only these two."""

    dataset: ObjectDataset
    size: int

    def random_map(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        index %= len(self.dataset)
        num_views = self.dataset.num_views(index)
        first = rng.integers(num_views)
        # Sampled from the other views by skipping the first: uniform over ordered pairs of distinct views.
        second = rng.integers(num_views - 1)
        image, camera = self.dataset.views(index, [first, second + (second >= first)], self.size)
        return {"image": image, "R": camera.R, "t": camera.t, "K": camera.K}


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The same rows of each batch of a stream, one after another."""

    stream: grain.MapDataset
    batch_size: int
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.stream) // self.batch_size * len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        step, place = divmod(index, len(self.rows))
        return self.stream[step * self.batch_size + self.rows[place]]
