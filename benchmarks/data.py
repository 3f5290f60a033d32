"""Speed of the data pipeline: pairs/s by number of worker processes, and where the time of a pair goes.

    python -m benchmarks.data [--size=64] [--views=251] [--workers=0,1,2,4] [--json=FILE]

makes a data set in a temporary folder (rendered procedural shapes, RGBA, each written as many objects), converts it,
and prints a table and the same as one line of JSON. Rows named "one core" are pinned to a core, their workers too.
Pairs/s are counted at the consumer, which does nothing else. The files are in the page cache: disks are not measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import statistics
import tempfile
import time

import numpy as np
import tqdm
from absl import app, flags

from benchmarks import record
from threedim.data import convert, pipeline, png, records, srn
from threedim.procedural import shapes
from threedim.rendering import raycast
from threedim.rendering.meshes import from_trimesh
from threedim.rendering.viewpoints import RADIUS, default_intrinsics, sphere_cameras


def make_objects(folder: pathlib.Path, num_objects: int, views: int, size: int, rendered: int = 40) -> None:
    """Writes objects whose pictures are rendered: one chair and one car, each many times under other names.

    ``rendered`` views of each are made, and repeated where an object has more.
    """
    for index, kind in enumerate(("chair", "car")):
        cameras = sphere_cameras(views, RADIUS, default_intrinsics(size), index)
        seen = min(views, rendered)
        pictures = raycast.render_views(from_trimesh(shapes.make_shape(kind, index)), cameras[:seen], size, 4)
        first = folder / f"{index:06d}"
        srn.write_object(first, with_alpha(pictures)[np.arange(views) % seen], cameras)
        for copy in range(index + 2, num_objects, 2):
            shutil.copytree(first, folder / f"{copy:06d}")


def with_alpha(pictures: np.ndarray) -> np.ndarray:
    """RGBA, like the release: white becomes transparent."""
    if pictures.shape[-1] == 4:
        return pictures
    alpha = np.where(np.all(pictures == 255, axis=-1, keepdims=True), 0, 255).astype(np.uint8)
    return np.concatenate([pictures, alpha], axis=-1)


@contextlib.contextmanager
def pinned(cores: set[int]):
    """Runs this process, and those that it starts, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def stream_rate(dataset, size: int, batch_size: int, num_workers: int, seconds: float, repeats: int) -> dict:
    """Pairs/s of ``train_batches``: of several stretches of ``seconds``, the median, slowest and fastest."""
    start = time.perf_counter()
    with pipeline.train_batches(dataset, batch_size=batch_size, size=size, seed=0, num_workers=num_workers) as batches:
        next(batches)
        first = time.perf_counter() - start
        # What was read ahead while nobody measured must be used up first: two batches of every worker, and some.
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
    """Milliseconds per pair of reading a record, and of decoding and resizing two PNGs, one after the other."""
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


def _main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; all arguments are flags")
    given = flags.FLAGS
    head = record.head("data", devices=False)
    workers = [int(count) for count in given.workers]
    cores = os.sched_getaffinity(0)
    one_core = {min(cores)}
    with tempfile.TemporaryDirectory() as root:
        source = pathlib.Path(root) / "source"
        make_objects(source, given.objects, given.views, given.image_size)
        folders = srn.find_objects(source)
        start = time.perf_counter()
        convert.prepare({"train": folders}, pathlib.Path(root) / "records")
        seconds = time.perf_counter() - start
        dataset = records.open_split(pathlib.Path(root) / "records", "train")
        png_bytes = round(statistics.mean(len(png) for png in dataset[0].pngs + dataset[1].pngs))
        with pinned(one_core):
            parts = part_times(dataset, given.size)
        rows = []
        plans = [("one core", one_core, count) for count in workers if count < 2]
        plans += [(f"{len(cores)} cores", cores, count) for count in workers]
        for name, allowed, count in tqdm.tqdm(plans, desc="measuring", unit="row", leave=False):
            with pinned(allowed):
                rate = stream_rate(dataset, given.size, given.batch_size, count, given.seconds, given.repeats)
            rows.append({"cores": name, "workers": count} | rate)
    result = {
        "objects": len(folders),
        "views": given.views,
        "image_size": given.image_size,
        "size": given.size,
        "batch_size": given.batch_size,
        "png_bytes": png_bytes,
        "convert_views_per_second": round(len(folders) * given.views / seconds, 1),
        **parts,
        "stream": rows,
    }
    print(f"{len(folders)} objects of {given.views} views, {given.image_size} px PNGs of {png_bytes} bytes (mean)")
    print(f"converting: {result['convert_views_per_second']:.0f} views/s, every PNG checked")
    print(f"a pair at {given.size} px, one core: record {parts['read_record_ms']} ms, PNGs {parts['decode_two_ms']} ms")
    print(f"{'':12}{'workers':>8}{'pairs/s':>10}{'slowest':>10}{'fastest':>10}{'first batch':>14}")
    for row in rows:
        print(
            f"{row['cores']:12}{row['workers']:8}{row['pairs_per_second']:10.1f}{row['slowest']:10.1f}"
            f"{row['fastest']:10.1f}{row['first_batch_seconds']:12.2f} s"
        )
    print(json.dumps(result))
    if given.json:
        # By name, so that rows meet their like in another file.
        stream = {f"{row['cores']}, {row['workers']} worker(s)": row for row in rows}
        record.write(given.json, "data", head, result | {"stream": stream})


if __name__ == "__main__":
    flags.DEFINE_integer("objects", 200, "Objects in the data set.", lower_bound=2)
    flags.DEFINE_integer("views", 50, "Views per object.", lower_bound=2)
    flags.DEFINE_integer("image_size", 128, "Height and width of the PNGs, pixels.", lower_bound=1)
    flags.DEFINE_integer("size", 128, "Height and width of the batches, pixels.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 128, "Pairs per batch.", lower_bound=1)
    flags.DEFINE_list("workers", ["0", "1", "2"], "Numbers of worker processes to measure.")
    flags.DEFINE_float("seconds", 2.0, "Length of a timed stretch.", lower_bound=0.1)
    flags.DEFINE_integer("repeats", 5, "Timed stretches, of which the middle one counts.", lower_bound=1)
    flags.DEFINE_string("json", None, "Also write the figures to this file.")
    app.run(_main)
