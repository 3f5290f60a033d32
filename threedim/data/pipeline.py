"""Batches of view pairs for training, read with Grain; the stream is a pure function of (seed, step)."""

from __future__ import annotations

import atexit
import dataclasses
import signal
import sys
import weakref
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags

from threedim.data.records import ObjectDataset
from threedim.errors import UserError

_MIN_SHUFFLED = 1024
# Batches read ahead, by each worker.
_AHEAD = 2
_open_streams = weakref.WeakSet()


class Batches(Iterator[dict[str, np.ndarray]]):
    """An endless stream of batches; ``close()``, leaving its ``with`` block or the program's end stop its processes."""

    def __init__(self, iterator: grain.DatasetIterator):
        self._iterator = iterator
        _open_streams.add(self)

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            raise UserError("this stream of batches is closed")
        return next(self._iterator)

    def close(self) -> None:
        """Ends threads and worker processes; may be called again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


@atexit.register
def _close_streams() -> None:
    # Not left to Grain's own clean-up: it comes when modules are being taken down, and complains of missing names.
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
    """Endless batches of pairs: two distinct views of one object, drawn uniformly [7.2].

    Objects come in a new random order in every epoch, each once (of fewer than 1024 objects, in an order over as many
    epochs as make up 1024). Restarting at a step, or reading with another number of workers or only some rows of each
    batch, gives the same stream.

    Args:
      dataset: objects of at least two views each.
      batch_size: pairs per step.
      size: height and width in pixels; pictures are averaged down to it, intrinsics follow.
      seed: of the order of objects and the choice of views, at least 0.
      start_step: the step of the first batch; reaching it costs nothing.
      rows: of each batch, those that are wanted, in this order; all of them if None.
      num_workers: processes that read and decode; with 0, a thread of this process does.

    Returns:
      An iterator over dicts with B = the number of rows and frame 0 the clean view, frame 1 the target:
      ``image`` (B, 2, size, size, 3) uint8; ``R`` (B, 2, 3, 3), ``t`` (B, 2, 3), ``K`` (B, 2, 3, 3) float32.

    Raises:
      ValueError: if an object has fewer than two views, pictures are smaller than ``size``, or a number out of range.
    """
    rows = range(batch_size) if rows is None else rows
    if batch_size < 1 or not rows or not all(0 <= row < batch_size for row in rows):
        raise UserError(f"rows {list(rows)} must be some of a batch of {batch_size} pairs")
    if seed < 0 or start_step < 0 or num_workers < 0:
        raise UserError(f"must be 0 or more: seed {seed}, start_step {start_step}, num_workers {num_workers}")
    if not 0 < size <= dataset.image_size:
        raise UserError(
            f"pictures of {dataset.image_size} px cannot be averaged down to {size} px; choose a smaller one"
        )
    for index, name in enumerate(dataset.names):
        if dataset.num_views(index) < 2:
            raise UserError(f"object {name} has {dataset.num_views(index)} view to train on; a pair needs two")
    _parse_flags()

    # Grain's shuffle takes up to 2 ms an index for a few objects, and 0.03 ms from about a thousand on: so few objects
    # are shuffled several epochs at a time.
    epochs = -(-_MIN_SHUFFLED // len(dataset))
    # The order of these steps matters: random_map sees each pair's place in the stream, whoever reads it.
    # Batches are made while there still is random access: a batch is then a function of its number, and workers take
    # turns by whole batches. Batching an iterator would depend on the workers, or pass every pair on by itself.
    stream = (
        grain.MapDataset.range(epochs * len(dataset)).seed(seed).shuffle().repeat().random_map(_DrawPair(dataset, size))
    )
    if len(rows) < batch_size or list(rows) != list(range(batch_size)):
        stream = grain.MapDataset.source(_Rows(stream, batch_size, tuple(rows)))
    batches = stream.slice(slice(start_step * len(rows), None)).batch(len(rows), drop_remainder=True)
    # One thread, so that reading goes on while the device computes; more cores are used by processes.
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD))
    if num_workers:
        # Through pipes: shared memory is 64 MB in a container by default, and stays behind when a process is killed.
        stream = grain.experimental.WithOptionsIterDataset(
            stream, grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        )
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=_AHEAD),
            worker_init_fn=_ignore_stop_signals,
        )
    return Batches(iter(stream))


@dataclasses.dataclass(frozen=True)
class _DrawPair(grain.transforms.RandomMap):
    """From an object's number (modulo the number of objects) to a pair of its views; only these two are decoded."""

    dataset: ObjectDataset
    size: int

    def random_map(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        index %= len(self.dataset)
        num_views = self.dataset.num_views(index)
        first = rng.integers(num_views)
        # A second draw among the others, which skips the first: uniform over ordered pairs of distinct views.
        second = rng.integers(num_views - 1)
        image, camera = self.dataset.views(index, [first, second + (second >= first)], self.size)
        return {"image": image, "R": camera.R, "t": camera.t, "K": camera.K}


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Of a stream that is cut into batches, the same rows of each, one after another."""

    stream: grain.MapDataset
    batch_size: int
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.stream) // self.batch_size * len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        step, place = divmod(index, len(self.rows))
        return self.stream[step * self.batch_size + self.rows[place]]


def _ignore_stop_signals(worker_index: int, worker_count: int) -> None:
    # Ctrl-C reaches the whole process group, and so may SIGTERM (Slurm, timeout). The main process decides when to
    # stop, and closes the workers: one that dies while it writes leaves the main process reading forever.
    del worker_index, worker_count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _parse_flags() -> None:
    # Grain's worker processes are handed absl flags, which outside of an absl application nobody has parsed.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
