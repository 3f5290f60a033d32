"""Renders a folder of meshes (GLB, glTF, OBJ, PLY; searched recursively) into a data set in SRN format.

    python -m threedim.data.render --meshes DIR --out DIR --views 50 --size 128

writes one folder of views per mesh, named after its path inside DIR, with "/" replaced by "_". Each mesh is scaled into
the unit sphere and rendered from cameras on a sphere (SRN's training views) or on SRN's test spiral. The same flags
give the same images. Run again to resume, or after adding meshes: finished objects are kept.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from threedim import errors
from threedim.cameras import Camera
from threedim.data import srn
from threedim.errors import MissingError, UserError
from threedim.files import read_json, write_atomically
from threedim.procedural import shapes
from threedim.progress import Progress
from threedim.rendering import meshes as meshes_lib
from threedim.rendering.meshes import BadMeshError, load_mesh
from threedim.rendering.raycast import render_views
from threedim.rendering.viewpoints import RADIUS, default_intrinsics, sphere_cameras, spiral_cameras
from threedim.settings import check_claim

CAMERA_PATHS = ("sphere", "spiral")
SPLITS = ("train", "test")
# Holds the settings of the objects beside it, so that a later run cannot mix in others.
_MANIFEST = "render.json"
# Number of shape seeds reserved for a split.
_SPLIT_STRIDE = 10**9
# Of procedural training views, degrees. Not SRN's -90: test views never show undersides.
_MIN_ELEVATION = -15.0


@dataclasses.dataclass(frozen=True)
class ViewSettings:
    """How objects are rendered."""

    views: int  # images per object
    size: int  # height and width, pixels
    samples: int = 16  # rays per pixel
    seed: int = 0  # of the cameras; those of an object depend on the seed and its name
    path: str = "sphere"  # sampled uniformly; or "spiral", the same for all objects
    radius: float = RADIUS  # distance of the cameras, in radii of the object
    min_elevation: float = -90.0  # lowest elevation of cameras on the sphere, degrees

    def __post_init__(self):
        for name in ("views", "size", "samples"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")
        if self.seed < 0:
            raise UserError(f"seed must not be negative, got {self.seed}")
        _one_of("cameras", self.path, CAMERA_PATHS)
        self.cameras("any")  # checks the other fields

    def cameras(self, name: str) -> Camera:
        """The cameras of an object, batched (view,)."""
        K = default_intrinsics(self.size)
        if self.path == "spiral":
            return spiral_cameras(self.views, self.radius, K)
        # Not Python's hash, which differs between processes.
        words = np.frombuffer(hashlib.sha256(name.encode()).digest(), "<u4")
        rng = np.random.default_rng([self.seed, *words.tolist()])
        return sphere_cameras(self.views, self.radius, K, rng, self.min_elevation)


class Report(NamedTuple):
    """Names of the objects rendered by a run and of those kept from earlier ones, and an error message per bad mesh."""

    rendered: list[str]
    kept: list[str]
    bad: list[str]


def find_meshes(folder: str | os.PathLike) -> dict[str, pathlib.Path]:
    """Mesh files below a local folder by object name, sorted. Hidden files and folders are ignored.

    Raises:
      MissingError: if the folder does not exist or contains no mesh.
      UserError: if two files would become objects of the same name.
    """
    folder, found = pathlib.Path(folder), {}
    if not folder.is_dir():
        raise MissingError(f"{folder}: no such folder; expected one with meshes ({', '.join(meshes_lib.SUFFIXES)})")
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith((".", "__MACOSX")) for part in inside.parts)
        if hidden or path.suffix.lower() not in meshes_lib.SUFFIXES or not path.is_file():
            continue
        name = "_".join(inside.with_suffix("").parts)
        if name in found:
            raise UserError(f"{found[name]} and {path} would both become object {name!r}; rename one of them")
        found[name] = path
    if not found:
        raise MissingError(f"{folder} contains no mesh; supported formats are {', '.join(meshes_lib.SUFFIXES)}")
    return found


def render_meshes(
    folder: str | os.PathLike, out: epath.PathLike, settings: ViewSettings, up="auto", num_workers: int | None = None
) -> Report:
    """Renders every mesh below ``folder`` into an object folder of ``out`` in SRN format, with a progress bar.

    Objects are written atomically and existing ones are kept, so an interrupted run resumes. A bad mesh does not stop
    the others.

    Args:
      folder: local folder, searched recursively.
      out: folder of the objects; created if missing.
      settings: size, number and path of the views.
      up: as in `meshes.load_mesh`.
      num_workers: processes; defaults to the number of cores. With more than one, the calling script needs the usual
        ``if __name__ == "__main__":``.

    Raises:
      MissingError, UserError: as `find_meshes`; or if ``out`` holds objects rendered with other settings.
    """
    _one_of("up", up, meshes_lib.UP_AXES)
    makers = {name: functools.partial(load_mesh, path, up) for name, path in find_meshes(folder).items()}
    return _render_all(epath.Path(out), makers, settings, {"source": "meshes", "up": up}, num_workers)


def render_procedural(
    out: epath.PathLike,
    split: str,
    kinds: tuple[str, ...] = shapes.KINDS,
    num_objects: int = 100,
    views: int = 50,
    size: int = 64,
    samples: int = 16,
    seed: int = 0,
    num_workers: int | None = None,
) -> Report:
    """Renders procedural shapes into object folders of ``out`` in SRN format. Resumes like `render_meshes`.

    Training views are sampled on a sphere, test views lie on SRN's spiral. No two splits or seeds share a shape.
    Object i is of kind ``kinds[i % len(kinds)]`` and does not depend on ``num_objects``, so a set can be enlarged.

    Args:
      out: folder of this split's objects; created if missing.
      split: "train" or "test".
      kinds: of `shapes.KINDS`, taken in turn.
      num_objects: of all kinds together.
      views, size, samples, num_workers: as in `ViewSettings` and `render_meshes`.
      seed: seed of shapes and cameras.

    Raises:
      UserError: if an argument is out of range, or ``out`` holds objects rendered with other settings.
    """
    _one_of("split", split, SPLITS)
    if not kinds or not set(kinds) <= set(shapes.KINDS):
        raise UserError(f"kinds must be some of {', '.join(shapes.KINDS)}; got {kinds}")
    if not 0 < num_objects <= _SPLIT_STRIDE:
        raise UserError(f"num_objects must be in [1, {_SPLIT_STRIDE}], got {num_objects}")
    path = "sphere" if split == "train" else "spiral"
    settings = ViewSettings(views, size, samples, seed, path, min_elevation=_MIN_ELEVATION)
    first = (2 * seed + SPLITS.index(split)) * _SPLIT_STRIDE
    by_index = [kinds[i % len(kinds)] for i in range(num_objects)]
    makers = {
        f"{kind}_{split}_{i:06d}": functools.partial(shapes.make_shape, kind, first + i)
        for i, kind in enumerate(by_index)
    }
    source = {"source": "procedural", "split": split, "kinds": list(kinds)}
    return _render_all(epath.Path(out), makers, settings, source, num_workers)


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def _render_all(
    out: epath.Path, makers: dict[str, Callable], settings: ViewSettings, source: dict, num_workers: int | None
) -> Report:
    """Renders objects, made by one function each, unless they are in ``out``, which has or gets the same settings."""
    manifest, made_by = out / _MANIFEST, dataclasses.asdict(settings) | source
    before = read_json(manifest) if manifest.exists() else None
    check_claim(manifest, before, made_by, "views rendered with", "--out (config.data.dir)")
    write_atomically(manifest, json.dumps(made_by, indent=2) + "\n")
    done = {child.name for child in out.iterdir()}
    kept, todo = [name for name in makers if name in done], [name for name in makers if name not in done]
    problems = {}
    with Progress(len(makers), initial=len(kept), desc=f"rendering objects, {out.name}") as bar:
        if (workers := min(num_workers or os.cpu_count() or 1, len(todo))) <= 1:
            for name in todo:
                problems[name] = _render_object(name, makers[name], out, settings)
                bar.advance()
        else:
            # Spawned, not forked: JAX, which the cameras import, has threads.
            pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
            try:
                running = {pool.submit(_render_object, name, makers[name], out, settings): name for name in todo}
                for future in concurrent.futures.as_completed(running):
                    problems[running[future]] = future.result()
                    bar.advance()
            finally:
                pool.shutdown(cancel_futures=True)
    rendered = [name for name in todo if problems[name] is None]
    return Report(rendered, kept, [problems[name] for name in todo if problems[name] is not None])


def _render_object(name: str, make: Callable, out: epath.Path, settings: ViewSettings) -> str | None:
    """Writes one object. Returns the error message of a bad mesh."""
    try:
        mesh = make()
    except (BadMeshError, OSError) as error:
        return str(error)
    cameras = settings.cameras(name)
    srn.write_object(out / name, render_views(mesh, cameras, settings.size, settings.samples), cameras)
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        "python -m threedim.data.render", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--meshes", required=True, help="Folder of GLB, glTF, OBJ or PLY files, searched recursively.")
    add("--out", required=True, help="Output folder: one folder per object, in SRN format.")
    add("--views", type=int, default=50, help="Views per object.")
    add("--size", type=int, default=128, help="Height and width of the images, pixels.")
    cameras = "Sampled uniformly on a sphere (for training), or on SRN's test spiral."
    add("--cameras", default="sphere", choices=CAMERA_PATHS, help=cameras)
    add("--test_views", type=int, default=0, help="Also render this many spiral views of each object, to OUT_test.")
    lowest = "Lowest elevation of sphere cameras, degrees. Defaults to -90, SRN's full sphere."
    add("--min_elevation", type=float, default=-90.0, help=lowest)
    add("--radius", type=float, default=RADIUS, help="Distance of the cameras, in radii of the object.")
    add("--samples", type=int, default=16, help="Rays per pixel.")
    add("--seed", type=int, default=0, help="Seed of the sphere cameras.")
    axis = "Up axis of the files. auto: y for GLB, glTF and OBJ, z for PLY."
    add("--up", default="auto", choices=meshes_lib.UP_AXES, help=axis)
    add("--workers", type=int, help="Processes. Defaults to the number of cores.")
    given = parser.parse_args(argv)
    out = epath.Path(given.out)
    common = {"size": given.size, "samples": given.samples, "seed": given.seed, "radius": given.radius}
    with errors.one_line():
        runs = [(out, ViewSettings(given.views, path=given.cameras, min_elevation=given.min_elevation, **common))]
        if given.test_views:
            runs.append((out.parent / f"{out.name}_test", ViewSettings(given.test_views, path="spiral", **common)))
        reports = [(to, render_meshes(given.meshes, to, use, given.up, given.workers)) for to, use in runs]
    bad = sorted({problem for _, report in reports for problem in report.bad})
    for to, report in reports:
        print(f"{to}: {len(report.rendered)} objects rendered, {len(report.kept)} already there")
    if bad:
        print(f"\n{len(bad)} meshes could not be rendered:", *bad, sep="\n  ", file=sys.stderr)
        sys.exit(1)
