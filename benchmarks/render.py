"""Speed of the renderer on one core, for procedural shapes and for meshes.

    python -m benchmarks.render [--meshes=DIR] [--json=FILE]

Measures views per second at 64 px and 16 rays per pixel.
"""

from __future__ import annotations

import os
import statistics
import time

import tqdm
from absl import flags

from benchmarks import record
from threedim import files
from threedim.procedural import shapes
from threedim.rendering import raycast
from threedim.rendering.meshes import from_trimesh, load_mesh
from threedim.rendering.render import find_meshes
from threedim.rendering.viewpoints import RADIUS, default_intrinsics, sphere_cameras


def measure(given: flags.FlagValues) -> dict:
    """Renders groups of objects on one core, as the flags say.

    Returns:
      For each group: number of objects, mean faces, and views per second of the median, slowest and fastest run.
    """
    cores = "unpinned"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        cores = "one"
    groups = {
        f"procedural {kind}s": [from_trimesh(shapes.make_shape(kind, seed)) for seed in range(given.objects)]
        for kind in shapes.KINDS
    }
    if given.meshes:
        found = list(find_meshes(files.path(given.meshes)).values())
        step = max(1, len(found) // given.objects)
        groups["meshes"] = [load_mesh(path) for path in found[::step][: given.objects]]
    rows = {}
    with tqdm.tqdm(total=len(groups) * (given.repeats + 1), desc="rendering", unit="round", leave=False) as rounds:
        for group, members in groups.items():
            rates = []
            for _ in range(given.repeats + 1):
                start = time.perf_counter()
                for index, geometry in enumerate(members):
                    cameras = sphere_cameras(given.views, RADIUS, default_intrinsics(given.size), index)
                    raycast.render_views(geometry, cameras, given.size, given.samples)
                rates.append(given.views * len(members) / (time.perf_counter() - start))
                rounds.update()
            rates = rates[1:]  # the first run warms up
            rows[group] = {
                "objects": len(members),
                "mean_faces": round(statistics.mean(len(member.triangles) for member in members)),
                "views_per_second": round(statistics.median(rates), 1),
                "slowest": round(min(rates), 1),
                "fastest": round(max(rates), 1),
            }
    return {"size": given.size, "samples": given.samples, "cores": cores, "render": rows}


def report(figures: dict) -> str:
    """The figures as text."""
    lines = [
        f"{figures['size']} px, {figures['samples']} rays per pixel, cores: {figures['cores']}",
        f"{'':24}{'objects':>8}{'faces':>8}{'views/s':>10}{'slowest':>10}{'fastest':>10}",
    ]
    for group, row in figures["render"].items():
        lines.append(
            f"{group:24}{row['objects']:8}{row['mean_faces']:8}"
            f"{row['views_per_second']:10.1f}{row['slowest']:10.1f}{row['fastest']:10.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    flags.DEFINE_string("meshes", None, "Folder of mesh files to measure as well.")
    flags.DEFINE_integer("objects", 12, "Objects per group.", lower_bound=1)
    flags.DEFINE_integer("views", 20, "Views per object.", lower_bound=1)
    flags.DEFINE_integer("size", 64, "Height and width of the views, pixels.", lower_bound=1)
    flags.DEFINE_integer("samples", 16, "Rays per pixel.", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "Timed runs, of which the median counts.", lower_bound=1)
    record.run("render", measure, report, devices=False)
