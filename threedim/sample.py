"""--mode=sample: novel views of objects, sampled one after another and written in SRN format.

An output folder holds

* ``views/<object>/``: everything of an object (`output.object_folder`), in SRN format, so it can be an input again;
* ``index.html``: if there are several objects, a page that links to theirs;
* ``samples.json``: the settings, and the numbers of each object's input and target views.

Each view is written when it is finished, and an object's folder appears when it is complete: an interrupted rollout
resumes after its last finished view.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from threedim import config as config_lib
from threedim import distributed, files, locks, pixels
from threedim import settings as settings_lib
from threedim.cameras import Camera
from threedim.data import sources
from threedim.errors import UserError
from threedim.files import read_json
from threedim.output import object_folder
from threedim.progress import Progress
from threedim.sampling import Sampler
from threedim.settings import check_claim
from threedim.tasks import Task, Views, make_tasks
from threedim.trained import Trained, open_run, open_trained, read
from threedim.training import hardware

PyTree = Any

# They decide how many objects are sampled, not how.
_FREE = ("num_objects", "num_samples", "objects_seed", "batch_size", "out")


def sample(
    config: ml_collections.ConfigDict, workdir: epath.PathLike, tasks: Sequence[Task] | None = None
) -> epath.Path:
    """Samples the views that ``config.sample`` asks for with the averaged weights of a run or file.

    Args:
      config: its section ``sample`` says which views, with which weights and settings.
      workdir: folder of the run; with ``config.sample.weights`` only the place for the output.
      tasks: objects and views, instead of those that `make_tasks` makes of ``config``.

    Returns:
      The output folder.

    Raises:
      MissingError: if there is no such checkpoint, weights file or data.
      UserError: if the settings contradict the weights, the data, or what the output folder holds.
    """
    # What is sampled, and with what.
    devices = jax.local_devices()
    batch_size = config.sample.batch_size
    if batch_size < 0 or batch_size % len(devices):
        rule = f"must be 0, for as many as fit, or a multiple of this process's {len(devices)} device(s)"
        raise UserError(f"sample.batch_size {rule}, got {batch_size}")
    # Each process samples its own objects on its own devices, so that no process waits for another.
    split = NamedSharding(Mesh(np.asarray(devices), ("batch",)), PartitionSpec("batch"))
    # Read at once: a running trainer may remove them while data is prepared.
    trained, params = read(lambda: find_weights(config, workdir), NamedSharding(split.mesh, PartitionSpec()))
    sampler = config_lib.sampler(config)
    tasks = distributed.lead_first(lambda: make_tasks(config)) if tasks is None else list(tasks)

    out = output_folder(config, workdir, trained)
    with locks.hold(out, "writes views to") if distributed.is_lead() else contextlib.nullcontext():
        distributed.lead_first(lambda: _claim(out, config, sampler, trained, tasks))
        _sample_to(out, config, sampler, params, tasks, split)
        distributed.wait_for_all("sampling")
        if distributed.is_lead():
            page = _write_pages(out, config, sampler.settings.num_steps, tasks)
            print(f"views: {out / 'views'}\npage:  {page}")
    return out


def _write_pages(out: epath.Path, config: ml_collections.ConfigDict, num_steps: int, tasks: list[Task]) -> epath.Path:
    """Writes what shows several samples or objects together; returns the page to look at first."""
    settings, folder = read_json(out / "samples.json")["settings"], out / "views"
    further = [task.name for task in tasks if task.of]
    for task in tasks if further else ():
        if not task.of:
            names = [task.name, *(other.name for other in tasks if other.of == task.name)]
            steps = object_folder.load_steps(folder / task.name / object_folder.STEPS, num_steps)
            known = (len(task.input_views), task.load().truth, steps, settings)
            object_folder.write_samples([folder / name for name in names], *known)
    if elevations := config.sample.elevations:
        first = [task.name for task in tasks if not task.of]
        rows = {f"{angle:g} degrees": folder / name for angle, name in zip(elevations, first, strict=True)}
        object_folder.write_comparison(out / "elevations.png", rows)
        print(f"elevations side by side: {out / 'elevations.png'}; give the best one as --config.sample.elevation")
    return object_folder.write_overview(out, leave_out=further)


def _sample_to(
    out: epath.Path,
    config: ml_collections.ConfigDict,
    sampler: Sampler,
    params: PyTree,
    tasks: list[Task],
    split: NamedSharding,
) -> None:
    # What is finished already, and this process's share of the rest.
    devices, batch_size = jax.local_devices(), config.sample.batch_size
    todo = [task for task in tasks if not (out / "views" / task.name).exists()]
    for task in tasks if distributed.is_lead() else ():
        if task not in todo:  # a process may have been killed between writing the object and cleaning up
            _unfinished(out, task).rmtree(missing_ok=True)
    distributed.check_same("the list of objects to sample", [task.name for task in todo])
    todo = todo[jax.process_index() :: jax.process_count()]
    if not todo:
        print(f"nothing to do: {len(tasks)} object(s) are finished, or sampled by other processes")

    settings = read_json(out / "samples.json")["settings"]
    finished = {task.name: _read_finished(out, task, config.model.image_size) for task in todo}
    total, initial = sum(len(task.target_views) for task in todo), sum(map(len, finished.values()))
    if todo and batch_size == 0:
        batch_size = _fitting_batch(sampler, params, todo, split)
    rows = min(batch_size, -(-len(todo) // len(devices)) * len(devices))
    with Progress(total, initial=initial, desc="views", enabled=total > 0) as bar:
        for batch in _batches(todo, finished, batch_size):
            loaded = [task.load() for task in batch]

            def on_view(index: int, pictures: jax.Array, batch=batch) -> None:
                for task, picture in zip(batch, pixels.to_uint8(np.asarray(pictures)), strict=False):
                    pixels.save_png(_unfinished(out, task) / f"{index:06d}.png", picture)
                bar.advance(len(batch))

            def on_steps(steps: jax.Array, batch=batch) -> None:
                for task, one in zip(batch, np.asarray(steps), strict=False):
                    object_folder.save_steps(_unfinished(out, task) / object_folder.STEPS, one)

            # A last batch that is not full is padded with copies, which are dropped: one compiled program serves all.
            padded = [(task, views) for _ in range(batch_size) for task, views in zip(batch, loaded, strict=True)]
            arguments = _arguments(padded[:rows], finished, config.sample.seed)
            inputs, cameras, targets, keys, done = jax.device_put(arguments, split)
            calls = {"on_view": on_view, "on_steps": on_steps}
            views = sampler.sample_views(params, inputs, cameras, targets, keys, finished=done, **calls)
            for task, known, pictures in zip(batch, loaded, pixels.to_uint8(np.asarray(views)), strict=False):
                _write(out, task, known, pictures, settings)


def _fitting_batch(sampler: Sampler, params: PyTree, todo: list[Task], split: NamedSharding) -> int:
    """As many of the objects as fit into the devices' memory together, up to an eighth; asks the compiler."""
    devices = split.mesh.size
    most_views = max(todo, key=lambda task: len(task.input_views) + len(task.target_views))
    nothing = np.zeros((0, 1, 1, 3), np.uint8)
    *arguments, _ = _arguments([(most_views, most_views.load())], {most_views.name: nothing}, seed=0)

    def bytes_of(count: int) -> float:  # objects on each device
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((count * devices, *leaf.shape[1:]), leaf.dtype, sharding=split), arguments
        )
        return hardware.program_bytes(lambda: sampler.lower_view(params, *shapes).compile())

    # An allocator needs some more than the sum.
    limit, most = 0.9 * hardware.memory_limit(), -(-len(todo) // devices)
    count, needed = hardware.largest(bytes_of, limit, start=most, most=most, within=1 / 8)
    if count == 0:
        raise UserError(
            f"not even one object at a time fits into {limit / 2**30:.2f} GiB: set sample.num_views or "
            "sample.batch_size"
        )
    print(f"{count * devices} object(s) at once, in {needed / 2**30:.2f} GiB a device")
    return count * devices


def find_weights(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> Trained:
    """The weights of ``config.sample.weights``, or of the run in ``workdir``.

    Raises:
      MissingError: if there are none.
      UserError: if they were trained with another network or process than those of ``config``.
    """
    s = config.sample
    trained = open_trained(s.weights, s.checkpoint_step) if s.weights else open_run(workdir, s.checkpoint_step)
    trained.check_config(config)
    return trained


def output_folder(config: ml_collections.ConfigDict, workdir: epath.PathLike, trained: Trained) -> epath.Path:
    """``config.sample.out``, or a folder below the workdir's (or the current) views: of the image or the weights."""
    s = config.sample
    if s.out:
        return epath.Path(s.out)
    named = epath.Path(s.image or s.weights).stem if s.image or s.weights else f"step_{trained.step:07d}"
    return epath.Path(workdir or "") / "views" / named


def _claim(
    out: epath.Path, config: ml_collections.ConfigDict, sampler: Sampler, trained: Trained, tasks: list[Task]
) -> None:
    """Writes samples.json, or checks that it was written with the same settings."""
    settings = settings_lib.plain(config.sample) | settings_lib.plain(dataclasses.asdict(sampler.settings))
    if config.sample.object:
        settings |= {f"data.{name}": value for name, value in sources.read_settings(config.data).changed().items()}
    settings |= {"checkpoint_step": trained.step, "weights": trained.identity, "data": sorted({t.data for t in tasks})}
    settings = {name: value for name, value in settings.items() if name not in _FREE}
    objects = {task.name: {"input_views": task.input_views, "target_views": task.target_views} for task in tasks}
    path = out / "samples.json"
    content = read_json(path) if path.exists() else {"settings": None, "objects": {}}
    with files.interpreting(path):
        before, known = content["settings"], content["objects"] | objects
    check_claim(path, before, settings, "views sampled with", "--config.sample.out=FOLDER")
    if distributed.is_lead():
        files.write_atomically(path, json.dumps({"settings": settings, "objects": known}, indent=2) + "\n")


def _batches(todo: list[Task], finished: dict[str, np.ndarray], size: int) -> Iterator[list[Task]]:
    """Objects with equal numbers of inputs, targets and finished views, which can be sampled together."""
    groups: dict[tuple[int, int, int], list[Task]] = {}
    for task in todo:
        key = (len(task.input_views), len(task.target_views), len(finished[task.name]))
        groups.setdefault(key, []).append(task)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _arguments(batch: list[tuple[Task, Views]], finished: dict[str, np.ndarray], seed: int) -> tuple:
    """Inputs, their cameras, target cameras, keys and finished views, each with axes (object, ...)."""
    tasks, views = zip(*batch, strict=True)
    keys = [jax.random.fold_in(jax.random.key(seed), zlib.crc32(task.name.encode())) for task in tasks]
    inputs, done = [each.inputs for each in views], [finished[task.name] for task in tasks]
    cameras, targets = Camera.stack([each.cameras for each in views]), Camera.stack([each.targets for each in views])
    return pixels.to_float(inputs), cameras, targets, jax.numpy.stack(keys), pixels.to_float(done)


def _unfinished(out: epath.Path, task: Task) -> epath.Path:
    return out / "unfinished" / task.name


def _read_finished(out: epath.Path, task: Task, size: int) -> np.ndarray:
    """The views that an interrupted run has finished, up to the first gap, (view, height, width, 3) uint8."""
    paths = [_unfinished(out, task) / f"{index:06d}.png" for index in range(len(task.target_views))]
    pictures = []
    for path in itertools.takewhile(lambda path: path.exists(), paths):
        pictures.append(pixels.load_png(path))
        if pictures[-1].shape[:2] != (size, size):
            raise UserError(f"{path} is no unfinished view of {size}x{size} pixels; delete {path.parent}")
    return np.stack(pictures) if pictures else np.zeros((0, size, size, 3), np.uint8)


def _write(out: epath.Path, task: Task, known: Views, sampled: np.ndarray, settings: dict[str, Any]) -> None:
    steps = object_folder.load_steps(_unfinished(out, task) / object_folder.STEPS, settings["num_steps"])
    views = (known.inputs, known.cameras, sampled, known.targets)
    object_folder.write(out / "views" / task.name, *views, truth=known.truth, steps=steps, settings=settings)
    _unfinished(out, task).rmtree()
