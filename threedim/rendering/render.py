"""Renders a folder of meshes (GLB, glTF, OBJ, DAE, PLY, 3MF, OFF, STL) into a data set in SRN format.

    python -m threedim.data.render --meshes DIR --out DIR --views 50 --size 128

searches the folder recursively and writes one folder of views per mesh, named after its path inside DIR, with "/"
replaced by "_". Each mesh is scaled into the unit sphere and rendered from cameras on a sphere (SRN's training views)
or on SRN's test spiral. The same flags give the same images. Run again to resume, or after adding meshes: finished
objects are kept.

What a file names and does not arrive, such as a missing texture, is listed at the end. With --strict such an object is
not written.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import trimesh
from etils import epath

from threedim import errors, files
from threedim.cameras import Camera
from threedim.data import srn
from threedim.errors import MissingError, UserError
from threedim.files import read_json, write_atomically
from threedim.procedural import shapes
from threedim.progress import Progress
from threedim.rendering import meshes as meshes_lib
from threedim.rendering import pool
from threedim.rendering.meshes import BadMeshError, load_mesh
from threedim.rendering.raycast import check_supported, render_views
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
# 3-D formats and archives that are not read, to say so.
_UNREAD = (
    *(".3ds", ".abc", ".blend", ".c4d", ".drc", ".fbx", ".iges", ".igs", ".lwo", ".ma", ".max", ".mb", ".skp", ".step"),
    *(".stp", ".usd", ".usda", ".usdc", ".usdz", ".vrml", ".wrl", ".x", ".x3d", ".zip", ".rar", ".7z", ".gz", ".tar"),
)


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
    """What a run has done."""

    rendered: list[str]  # names of its objects
    kept: list[str]  # and of those from earlier runs
    bad: list[str]  # an error message for each bad mesh
    warnings: list[str]  # a line for each thing that a mesh names and that is not rendered, or that looks wrong


def find_meshes(folder: str | os.PathLike) -> dict[str, pathlib.Path]:
    """Mesh files below a local folder by object name, sorted. Hidden files and folders are ignored.

    Of files that differ in their suffix only, the first format of `meshes.SUFFIXES` counts.

    Raises:
      MissingError: if the folder does not exist or contains no mesh.
      UserError: if two files would become objects of the same name.
    """
    folder, found = pathlib.Path(folder), {}
    paths = _files(folder)
    for path in paths:
        if path.suffix.lower() not in meshes_lib.SUFFIXES:
            continue
        name = "_".join(path.relative_to(folder).with_suffix("").parts)
        known = found.setdefault(name, path)
        if known.with_suffix("") != path.with_suffix(""):
            raise UserError(f"{known} and {path} would both become object {name!r}; rename one of them")
        found[name] = min(known, path, key=lambda each: meshes_lib.SUFFIXES.index(each.suffix.lower()))
    if not found:
        left = left_out(folder, found)
        raise MissingError(
            f"{folder} contains no mesh; supported formats are {', '.join(meshes_lib.SUFFIXES)}"
            + (f", and it contains {left}" if left else "")
        )
    return found


def left_out(folder: str | os.PathLike, found: dict[str, pathlib.Path]) -> str:
    """The files of `find_meshes`' folder that hold meshes but are not used, by kind: "2 .fbx, 1 .stl"."""
    used = set(found.values())
    suffixes = (path.suffix.lower() for path in _files(pathlib.Path(folder)) if path not in used)
    counts = collections.Counter(suffix for suffix in suffixes if suffix in (*_UNREAD, *meshes_lib.SUFFIXES))
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        raise MissingError(f"{folder}: no such folder; expected one with meshes ({', '.join(meshes_lib.SUFFIXES)})")

    def refuse(error: OSError) -> None:
        raise error

    paths = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        paths += [pathlib.Path(parent, name) for name in names if not name.startswith((".", "__MACOSX"))]
    return sorted(path for path in paths if path.is_file())


def render_meshes(
    folder: str | os.PathLike,
    out: epath.PathLike,
    settings: ViewSettings,
    up="auto",
    num_workers: int | None = None,
    strict: bool = False,
    allow_outside: bool = False,
) -> Report:
    """Renders every mesh below ``folder`` into an object folder of ``out`` in SRN format, with a progress bar.

    Objects are written atomically and existing ones are kept, so an interrupted run resumes. A bad mesh does not stop
    the others, nor does one of which a process is killed, as the system does if memory runs out.

    Args:
      folder: local folder, searched recursively.
      out: folder of the objects; created if missing.
      settings: size, number and path of the views.
      up: as in `meshes.load_mesh`.
      num_workers: processes; defaults to the number of cores. With more than one, the calling script needs the usual
        ``if __name__ == "__main__":``.
      strict: a mesh with warnings is bad.
      allow_outside: read what links and ".." in file names lead to outside of ``folder``.

    Raises:
      MissingError, UserError: as `find_meshes`; or if ``out`` holds objects rendered with other settings, or cannot be
        written.
    """
    _one_of("up", up, meshes_lib.UP_AXES)
    inside = pathlib.Path(folder).resolve().anchor if allow_outside else folder
    load = functools.partial(load_mesh, up=up, inside=inside)
    todo = [_Todo(name, str(path), functools.partial(load, path)) for name, path in find_meshes(folder).items()]
    return _render_all(epath.Path(out), todo, settings, {"source": "meshes", "up": up}, num_workers, strict)


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
    names = [f"{kinds[i % len(kinds)]}_{split}_{i:06d}" for i in range(num_objects)]
    makers = [functools.partial(procedural_shape, name, seed) for name in names]
    todo = [_Todo(name, name, make) for name, make in zip(names, makers, strict=True)]
    source = {"source": "procedural", "split": split, "kinds": list(kinds)}
    return _render_all(epath.Path(out), todo, settings, source, num_workers)


def procedural_shape(name: str, seed: int) -> trimesh.Trimesh:
    """The mesh of an object that `render_procedural` renders, such as "chair_test_000004", with its ``seed``."""
    kind, split, index = name.split("_")
    return shapes.make_shape(kind, (2 * seed + SPLITS.index(split)) * _SPLIT_STRIDE + int(index))


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{name} must be one of {', '.join(known)}; got {value!r}")


class _Todo(NamedTuple):
    """An object to render."""

    name: str
    label: str  # for messages: the file of a mesh
    make: Callable


class _Outcome(NamedTuple):
    """What became of an object: written, unless there is a problem."""

    problem: str | None
    warnings: tuple[str, ...] = ()


def _render_all(
    out: epath.Path, objects: list[_Todo], settings: ViewSettings, source: dict, num_workers: int | None, strict=False
) -> Report:
    """Renders objects unless they are in ``out``, which has or gets the same settings."""
    check_supported()
    manifest, made_by = out / _MANIFEST, dataclasses.asdict(settings) | source
    with errors.disk_errors(str(out)):
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file; the objects need a folder (--out)")
        before = read_json(manifest) if manifest.exists() else None
        check_claim(manifest, before, made_by, "views rendered with", "--out (config.data.dir)")
        write_atomically(manifest, json.dumps(made_by, indent=2) + "\n")
        done = {child.name for child in out.iterdir()}
        kept, todo = [each.name for each in objects if each.name in done], [o for o in objects if o.name not in done]
        render = functools.partial(_render_object, out=out, settings=settings, strict=strict)
        outcomes: dict[str, _Outcome] = {}
        with Progress(len(objects), initial=len(kept), desc=f"rendering objects, {out.name}") as bar:
            workers = min(num_workers or os.cpu_count() or 1, len(todo))
            results = pool.run(render, todo, workers) if workers > 1 else ((each, render(each)) for each in todo)
            for each, outcome in results:
                if outcome is None:
                    killed = "its process was killed, as the system does if memory runs out; try fewer workers"
                    outcome = _Outcome(f"{each.label}: {killed}")
                outcomes[each.name] = outcome
                bar.advance()
    in_order = [outcomes[each.name] for each in todo]
    return Report(
        rendered=[each.name for each in todo if outcomes[each.name].problem is None],
        kept=kept,
        bad=[outcome.problem for outcome in in_order if outcome.problem is not None],
        warnings=[warning for outcome in in_order for warning in outcome.warnings],
    )


def _render_object(each: _Todo, out: epath.Path, settings: ViewSettings, strict: bool) -> _Outcome:
    """Writes one object unless its mesh is bad."""
    try:
        mesh = each.make()
        cameras = settings.cameras(each.name)
        images = render_views(mesh, cameras, settings.size, settings.samples)
    except BadMeshError as error:
        return _Outcome(str(error))
    except OSError as error:
        return _Outcome(f"{each.label}: cannot be read ({error})")
    except MemoryError:
        return _Outcome(f"{each.label}: needs more memory than there is")
    warnings = getattr(mesh, "warnings", ())
    empty = images[..., 3].sum(axis=(1, 2), dtype=np.int64) < 255  # less than a pixel
    if empty.all():
        far = "is there a stray vertex far away from the object?"
        warnings += (f"{each.label}: no view shows more than a pixel; {far}",)
    elif empty.any():
        numbers = ", ".join(map(str, np.flatnonzero(empty)[:5])) + (", ..." if empty.sum() > 5 else "")
        warnings += (f"{each.label}: {empty.sum()} of {len(empty)} views show nothing ({numbers})",)
    if strict and warnings:
        return _Outcome("\n  ".join(warnings))
    srn.write_object(out / each.name, images, cameras)
    return _Outcome(None, warnings)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        "python -m threedim.data.render", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--meshes", type=files.path, required=True, help="Folder of mesh files, searched recursively.")
    add("--out", type=files.path, required=True, help="Output folder: one folder per object, in SRN format.")
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
    axis = "Up axis of the files. auto: y for GLB, glTF and OBJ, what the file says for DAE, z for the others."
    add("--up", default="auto", choices=meshes_lib.UP_AXES, help=axis)
    add("--workers", type=int, help="Processes. Defaults to the number of cores.")
    add("--strict", action="store_true", help="A mesh of which something is missing is bad, and is not written.")
    outside = 'Read what links and ".." in meshes lead to outside of --meshes.'
    add("--allow_outside", action="store_true", help=outside)
    given = parser.parse_args(argv)
    common = {"size": given.size, "samples": given.samples, "seed": given.seed, "radius": given.radius}
    with errors.one_line():
        out = epath.Path(given.out)
        runs = [(out, ViewSettings(given.views, path=given.cameras, min_elevation=given.min_elevation, **common))]
        if given.test_views:
            runs.append((out.parent / f"{out.name}_test", ViewSettings(given.test_views, path="spiral", **common)))
        left = left_out(given.meshes, find_meshes(given.meshes))
        options = {
            "up": given.up,
            "num_workers": given.workers,
            "strict": given.strict,
            "allow_outside": given.allow_outside,
        }
        try:
            reports = [(to, render_meshes(given.meshes, to, use, **options)) for to, use in runs]
        except KeyboardInterrupt:
            sys.exit("interrupted; the same command goes on with the objects that are missing")
    for to, report in reports:
        counts = f"{len(report.rendered)} objects rendered, {len(report.kept)} already there"
        print(f"{to}: {counts}, {len(report.warnings)} warnings")
    if left:
        print(f"\nleft out, in formats that are not read or there in another one: {left}", file=sys.stderr)
    # Each once, though test views are another run.
    warnings = list(dict.fromkeys(warning for _, report in reports for warning in report.warnings))
    bad = list(dict.fromkeys(problem for _, report in reports for problem in report.bad))
    if warnings:
        print("\nwarnings:", *warnings, sep="\n  ", file=sys.stderr)
    if bad:
        print(f"\n{len(bad)} meshes could not be rendered:", *bad, sep="\n  ", file=sys.stderr)
        sys.exit(1)
