"""Speed of the data pipeline: pairs per second by number of workers, and where the time of a pair goes.

    python -m benchmarks.data [--size=64] [--views=251] [--workers=0,1,2,4] [--json=FILE]

Renders a data set into a temporary folder (RGBA PNGs), converts it and reads it. In rows named "one core", this process
and its workers are pinned to one core. Pairs are counted at the consumer, which does nothing else. Files are in the
page cache: disks are not measured.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import statistics
import tempfile
import time

import numpy as np
import tqdm
from absl import flags

from benchmarks import record
from threedim.data import convert, pipeline, png, records, srn
from threedim.data.objects import find_objects
from threedim.procedural import shapes
from threedim.rendering import raycast
from threedim.rendering.meshes import from_trimesh
from threedim.rendering.viewpoints import RADIUS, default_intrinsics, sphere_cameras


def make_objects(folder: pathlib.Path, num_objects: int, views: int, size: int, rendered: int = 40) -> None:
    """Writes objects in SRN format: a chair and a car, each copied under many names.

    At most ``rendered`` views of each are rendered, and repeated where an object has more.
    """
    for index, kind in enumerate(("chair", "car")):
        cameras = sphere_cameras(views, RADIUS, default_intrinsics(size), index)
        seen = min(views, rendered)
        pixels = raycast.render_views(from_trimesh(shapes.make_shape(kind, index)), cameras[:seen], size, 4)
        first = folder / f"{index:06d}"
        srn.write_object(first, pixels[np.arange(views) % seen], cameras)
        for copy in range(index + 2, num_objects, 2):
            shutil.copytree(first, folder / f"{copy:06d}")


def stream_rate(dataset, size: int, batch_size: int, num_workers: int, seconds: float, repeats: int) -> dict:
    """Pairs per second of ``train_batches``: median, slowest and fastest of ``repeats`` stretches of ``seconds``."""
    start = time.perf_counter()
    with pipeline.train_batches(dataset, batch_size=batch_size, size=size, seed=0, num_workers=num_workers) as batches:
        next(batches)
        first = time.perf_counter() - start
        # Uses up what workers have read ahead: two batches each, and some more.
        for _ in range(6):
            next(batches)
        rates = []
        for _ in range(repeats):
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                next(batches)
                count += batch_size
            rates.append(count / (time.perf_counter() - start))
    return {
        "first_batch_seconds": round(first, 3),
        "pairs_per_second": round(statistics.median(rates), 1),
        "slowest": round(min(rates), 1),
        "fastest": round(max(rates), 1),
    }


def part_times(dataset, size: int, count: int = 400) -> dict[str, float]:
    """Milliseconds per pair for reading a record, and for decoding and resizing two PNGs."""
    rng = np.random.default_rng(0)
    read, decode = 0.0, 0.0
    for _ in range(count):
        index = int(rng.integers(len(dataset)))
        start = time.perf_counter()
        views = dataset[index]
        middle = time.perf_counter()
        for view in rng.integers(len(views.pngs), size=2):
            png.decode_png(views.pngs[view], size)
        read, decode = read + middle - start, decode + time.perf_counter() - middle
    return {"read_record_ms": round(1e3 * read / count, 3), "decode_two_ms": round(1e3 * decode / count, 3)}


def measure(given: flags.FlagValues) -> dict:
    """Makes a data set and measures it, as the flags say."""
    workers = [int(count) for count in given.workers]
    cores = os.sched_getaffinity(0)
    one_core = {min(cores)}
    with tempfile.TemporaryDirectory() as root:
        source = pathlib.Path(root) / "source"
        make_objects(source, given.objects, given.views, given.image_size)
        folders = find_objects(source)
        start = time.perf_counter()
        convert.prepare({"train": folders}, pathlib.Path(root) / "records")
        seconds = time.perf_counter() - start
        dataset = records.open_split(pathlib.Path(root) / "records", "train")
        png_bytes = round(statistics.mean(len(png) for png in dataset[0].pngs + dataset[1].pngs))
        os.sched_setaffinity(0, one_core)  # of this process and the workers that it starts
        parts = part_times(dataset, given.size)
        plans = [("one core", one_core, count) for count in workers if count < 2]
        plans += [(f"{len(cores)} cores", cores, count) for count in workers]
        stream = {}
        for name, allowed, count in tqdm.tqdm(plans, desc="measuring", unit="row", leave=False):
            os.sched_setaffinity(0, allowed)
            rate = stream_rate(dataset, given.size, given.batch_size, count, given.seconds, given.repeats)
            stream[f"{name}, {count} worker(s)"] = rate
    return {
        "objects": len(folders),
        "views": given.views,
        "image_size": given.image_size,
        "size": given.size,
        "batch_size": given.batch_size,
        "png_bytes": png_bytes,
        "convert_views_per_second": round(len(folders) * given.views / seconds, 1),
        **parts,
        "stream": stream,
    }


def report(f: dict) -> str:
    """The figures as text."""
    lines = [
        f"{f['objects']} objects of {f['views']} views, {f['image_size']} px PNGs of {f['png_bytes']} bytes (mean)",
        f"conversion: {f['convert_views_per_second']:.0f} views/s, every PNG checked",
        f"a pair at {f['size']} px, one core: record {f['read_record_ms']} ms, PNGs {f['decode_two_ms']} ms",
        f"{'':24}{'pairs/s':>10}{'slowest':>10}{'fastest':>10}{'first batch':>14}",
    ]
    for name, row in f["stream"].items():
        lines.append(
            f"{name:24}{row['pairs_per_second']:10.1f}{row['slowest']:10.1f}{row['fastest']:10.1f}"
            f"{row['first_batch_seconds']:12.2f} s"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    flags.DEFINE_integer("objects", 200, "Objects in the data set.", lower_bound=2)
    flags.DEFINE_integer("views", 50, "Views per object.", lower_bound=2)
    flags.DEFINE_integer("image_size", 128, "Height and width of the PNGs, pixels.", lower_bound=1)
    flags.DEFINE_integer("size", 128, "Height and width of the batches, pixels.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 128, "Pairs per batch.", lower_bound=1)
    flags.DEFINE_list("workers", ["0", "1", "2"], "Numbers of worker processes to measure.")
    flags.DEFINE_float("seconds", 2.0, "Length of a timed stretch.", lower_bound=0.1)
    flags.DEFINE_integer("repeats", 5, "Timed stretches, of which the median counts.", lower_bound=1)
    record.run("data", measure, report, devices=False)
