"""Speed of the renderer on one core: views/s at 64 px and 16 rays per pixel, for procedural shapes and for meshes.

python -m benchmarks.render [--meshes DIR] [--json FILE] prints a table, and the same as one line of JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import time

import tqdm
from absl import app, flags

from benchmarks import record
from threedim.procedural import shapes
from threedim.rendering import raycast
from threedim.rendering.meshes import Geometry, from_trimesh, load_mesh
from threedim.rendering.render import find_meshes
from threedim.rendering.viewpoints import RADIUS, default_intrinsics, sphere_cameras


def measure(
    geometries: dict[str, list[Geometry]], size: int = 64, samples: int = 16, views: int = 20, repeats: int = 5
) -> list[dict]:
    """Renders groups of geometries again and again on the calling thread.

    Args:
      geometries: groups by name.
      size, samples: of the pictures; rays per pixel.
      views: per object, on SRN's sphere.
      repeats: of the whole; the middle one counts.

    Returns:
      A row per group: name, objects, mean faces, median seconds, and views/s of the median, slowest and fastest run.
    """
    rows = []
    rounds = tqdm.tqdm(total=len(geometries) * (repeats + 1), desc="rendering", unit="round", leave=False)
    for group, members in geometries.items():
        seconds = []
        for repeat in range(repeats + 1):
            start = time.perf_counter()
            for index, geometry in enumerate(members):
                cameras = sphere_cameras(views, RADIUS, default_intrinsics(size), index)
                raycast.render_views(geometry, cameras, size, samples)
            if repeat > 0:  # the first warms up
                seconds.append(time.perf_counter() - start)
            rounds.update()
        total = views * len(members)
        rows.append(
            {
                "group": group,
                "objects": len(members),
                "mean_faces": round(statistics.mean(len(member.triangles) for member in members)),
                "median_seconds": round(statistics.median(seconds), 4),
                "views_per_second": round(total / statistics.median(seconds), 1),
                "slowest": round(total / max(seconds), 1),
                "fastest": round(total / min(seconds), 1),
            }
        )
    rounds.close()
    return rows


def _main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; all arguments are flags")
    given = flags.FLAGS
    head = record.head("render", devices=False)  # before this process is kept to one core
    cores = "unpinned"
    if hasattr(os, "sched_setaffinity"):
        core = min(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {core})
        cores = "one"
    groups = {
        f"procedural {kind}s": [from_trimesh(shapes.make_shape(kind, seed)) for seed in range(given.objects)]
        for kind in shapes.KINDS
    }
    if given.meshes:
        found = list(find_meshes(given.meshes).values())
        step = max(1, len(found) // given.objects)
        groups["meshes"] = [load_mesh(path) for path in found[::step][: given.objects]]
    rows = measure(groups, given.size, given.samples, given.views, given.repeats)
    print(f"{given.size} px, {given.samples} rays per pixel, cores: {cores}, median of {given.repeats} runs")
    print(f"{'':24}{'objects':>8}{'faces':>8}{'views/s':>10}{'slowest':>10}{'fastest':>10}")
    for row in rows:
        print(
            f"{row['group']:24}{row['objects']:8}{row['mean_faces']:8}"
            f"{row['views_per_second']:10.1f}{row['slowest']:10.1f}{row['fastest']:10.1f}"
        )
    result = {"size": given.size, "samples": given.samples, "cores": cores, "render": rows}
    print(json.dumps(result))
    if given.json:
        # By name, so that rows meet their like in another file.
        record.write(given.json, "render", head, result | {"render": {row["group"]: row for row in rows}})


if __name__ == "__main__":
    flags.DEFINE_string("meshes", None, "Folder with mesh files, to measure too.")
    flags.DEFINE_integer("objects", 12, "Objects per group.", lower_bound=1)
    flags.DEFINE_integer("views", 20, "Views per object.", lower_bound=1)
    flags.DEFINE_integer("size", 64, "Height and width of the pictures, pixels.", lower_bound=1)
    flags.DEFINE_integer("samples", 16, "Rays per pixel.", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "Runs, of which the middle one counts.", lower_bound=1)
    flags.DEFINE_string("json", None, "Also write the figures to this file.")
    app.run(_main)
