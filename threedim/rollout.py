"""--mode=sample: novel views of objects, drawn one after another and written in SRN format.

An output folder holds

* ``views/<object>/``: the input views first, then the drawn ones; a valid SRN object folder, so a valid input again;
* ``sheets/<object>.png``: input views, then each drawn view above its truth where that is known;
* ``gifs/<object>.gif``: the drawn views as a loop;
* ``samples.json``: settings, and which views of which object are which.

Each view is written as it is finished, and an object's folder appears when it is whole. Started again, the same command
goes on after the last finished view.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from threedim import cameras as cameras_lib
from threedim import files
from threedim.cameras import Camera
from threedim.data import records, sources, srn
from threedim.output import images
from threedim.sampling import sample_views
from threedim.training import build, checkpoints, run_info
from threedim.training.logging import progress
from threedim.training.state import abstract_params

SPLITS = ("test", "val", "train", "holdout")


@dataclasses.dataclass(frozen=True)
class Task:
    """One object to draw.

    Attributes:
      name: the object's name.
      inputs: known views, (inputs, height, width, 3) uint8.
      cameras: their cameras, axes (inputs,).
      targets: cameras to draw, axes (views,).
      truth: the true views there, (views, height, width, 3) uint8, or None if not known.
      input_views, target_views: their numbers in the object's folder; of an orbit, the numbers along it.
    """

    name: str
    inputs: np.ndarray
    cameras: Camera
    targets: Camera
    truth: np.ndarray | None
    input_views: list[int]
    target_views: list[int]


def sample(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> epath.Path:
    """Draws the views that ``config.sample`` asks for with the averaged weights of the run in ``workdir``.

    Returns:
      The output folder.

    Raises:
      FileNotFoundError: if there is no checkpoint, or no such data.
      ValueError: if the settings contradict the run, the data, or an output folder of other settings.
    """
    workdir = epath.Path(workdir)
    s = config.sample
    if s.batch_size < 1:
        raise ValueError(f"sample.batch_size must be at least 1, got {s.batch_size}")
    step = _checkpoint_step(config, workdir)
    trained, _ = run_info.read_run_info(workdir)
    denoiser, process, settings = build.denoiser(config), build.process(config), build.sample_settings(config)
    _check_same_model(trained, config, workdir)
    tasks = make_tasks(config)
    params = checkpoints.restore_params(workdir, abstract_params(denoiser.network), step=step)

    out = output_folder(config, workdir)
    _claim(out, {"checkpoint_step": step, **_plain(s), **dataclasses.asdict(settings)}, tasks)
    todo = [task for task in tasks if not (out / "views" / task.name).exists()]
    if not todo:
        print(f"nothing to do: {len(tasks)} object(s) are drawn already")
    views = sum(len(task.targets) for task in todo)
    done = {task.name: _read_partial(out, task) for task in todo}
    with progress(views, initial=sum(map(len, done.values())), desc="views", enabled=views > 0) as bar:
        finished = bar.initial
        for batch in _batches(todo, done, s.batch_size):
            # A last batch that is not full is filled up, and the fill thrown away: one compiled program serves all.
            filled = (batch * s.batch_size)[: min(s.batch_size, len(todo))]

            def on_view(index: int, picture: jax.Array, batch=batch) -> None:
                nonlocal finished
                for task, pixels in zip(batch, images.to_uint8(np.asarray(picture)), strict=False):
                    images.save_png(_partial(out, task) / f"{index:06d}.png", pixels)
                finished += len(batch)
                bar.set(finished)

            keys = [jax.random.fold_in(jax.random.key(s.seed), zlib.crc32(t.name.encode())) for t in filled]
            drawn = sample_views(
                denoiser,
                params,
                np.stack([images.to_float(task.inputs) for task in filled]),
                Camera.stack([task.cameras for task in filled]),
                Camera.stack([task.targets for task in filled]),
                jax.numpy.stack(keys),
                process=process,
                settings=settings,
                drawn=np.stack([images.to_float(done[task.name]) for task in filled]),
                on_view=on_view,
            )
            for task, pictures in zip(batch, images.to_uint8(np.asarray(drawn)), strict=False):
                _write(out, task, pictures, denoiser.network.image_size)
    for what, folder in (("views in SRN format", "views"), ("contact sheets", "sheets"), ("GIFs", "gifs")):
        print(f"{what + ':':21}{out / folder}")
    return out


def output_folder(config: ml_collections.ConfigDict, workdir: epath.Path) -> epath.Path:
    """Where ``sample`` writes: ``config.sample.out``, or a folder in the workdir named by the checkpoint's step."""
    if config.sample.out:
        return epath.Path(config.sample.out)
    return workdir / "views" / f"step_{_checkpoint_step(config, workdir):07d}"


def _checkpoint_step(config: ml_collections.ConfigDict, workdir: epath.Path) -> int:
    step = config.sample.checkpoint_step
    step = checkpoints.latest_step(workdir) if step is None else step
    if step is None:
        raise FileNotFoundError(f"no checkpoint in {workdir}: train first, or name the run's --workdir")
    return step


def make_tasks(config: ml_collections.ConfigDict) -> list[Task]:
    """What ``config.sample`` asks for, read from the data set or from ``config.sample.object``."""
    s, size = config.sample, config.model.image_size
    if s.cameras not in ("object", "orbit"):
        raise ValueError(f'sample.cameras must be "object" or "orbit", got {s.cameras!r}')
    if s.object:
        views = srn.read_object(s.object)
        return [_make_task(s, views.name, *views.decode(size=size))]
    if s.split not in SPLITS:
        raise ValueError(f"sample.split must be one of {', '.join(SPLITS)}, got {s.split!r}")
    sources.prepare_from_config(config.data)
    dataset = sources.open_from_config(config.data, s.split)
    known = sources.open_from_config(config.data, "train") if s.split == "holdout" else None
    chosen = range(len(dataset))[: s.num_objects or None]
    return [_task_of(s, dataset, known, index, size) for index in chosen]


def _task_of(
    s: ml_collections.ConfigDict,
    dataset: records.ObjectDataset,
    known: records.ObjectDataset | None,
    index: int,
    size: int,
) -> Task:
    pictures, cameras = dataset.views(index, range(dataset.num_views(index)), size)
    if known is None:
        return _make_task(s, dataset.names[index], pictures, cameras)
    # Held-out cameras of an object that training has seen: the inputs are views that training has seen too.
    number = known.names.index(dataset.names[index])
    numbers = _chosen_views(s.input_views, known.num_views(number), dataset.names[index])
    inputs, input_cameras = known.views(number, numbers, size)
    targets = list(range(len(cameras)))[: s.num_views or None]
    return Task(dataset.names[index], inputs, input_cameras, cameras[targets], pictures[targets], numbers, targets)


def _make_task(s: ml_collections.ConfigDict, name: str, pictures: np.ndarray, cameras: Camera) -> Task:
    numbers = _chosen_views(s.input_views, len(pictures), name)
    inputs, input_cameras = pictures[numbers], cameras[numbers]
    if s.cameras == "orbit":
        if s.num_views < 1:
            raise ValueError(f"sample.num_views must be at least 1 for an orbit, got {s.num_views}")
        radius = s.orbit_radius or float(np.linalg.norm(input_cameras.t[0]))
        azimuths = np.arange(s.num_views) * (360.0 / s.num_views)
        targets = cameras_lib.orbit(azimuths, s.orbit_elevation, radius, input_cameras.K[0])
        return Task(name, inputs, input_cameras, targets, None, numbers, list(range(s.num_views)))
    rest = [view for view in range(len(pictures)) if view not in numbers][: s.num_views or None]
    if not rest:
        raise ValueError(f"object {name} has no views besides the input views; set sample.cameras to 'orbit'")
    return Task(name, inputs, input_cameras, cameras[rest], pictures[rest], numbers, rest)


def _chosen_views(wanted: Sequence[int], count: int, name: str) -> list[int]:
    """Numbers of the input views: those asked for, or all for an empty list."""
    numbers = [int(number) for number in wanted] or list(range(count))
    wrong = [number for number in numbers if not 0 <= number < count]
    if wrong or len(set(numbers)) != len(numbers):
        raise ValueError(
            f"sample.input_views {tuple(numbers)} must be distinct views of object {name}, which has {count} (0 to "
            f"{count - 1})"
        )
    return numbers


def _check_same_model(trained: dict[str, Any], config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """The run's architecture and process must be those that sampling is asked for; only the dtype may differ."""
    lines = []
    for section, names in (("model", None), ("diffusion", None), ("data", ("pose",))):
        now = _plain(config[section])
        for name in names or sorted(now.keys() | trained[section].keys()):
            before, after = trained[section].get(name), now.get(name)
            if before != after and name not in ("dtype", "dropout"):
                lines.append(f"{section}.{name}: {before} → {after}")
    if lines:
        raise ValueError(f"the run in {workdir} was trained with other settings (then → now):\n  " + "\n  ".join(lines))


def _plain(section: ml_collections.ConfigDict) -> dict[str, Any]:
    """As it looks after a round trip through JSON."""
    return json.loads(section.to_json())


def _claim(out: epath.Path, settings: dict[str, Any], tasks: list[Task]) -> None:
    """Writes samples.json, or checks that the folder's is the same."""
    for name in ("num_objects", "batch_size", "out"):  # they decide how much is drawn, not what
        settings.pop(name)
    settings = json.loads(json.dumps(settings))  # tuples are lists in a file
    path = out / "samples.json"
    objects = {task.name: {"input_views": task.input_views, "target_views": task.target_views} for task in tasks}
    if path.exists():
        content = json.loads(path.read_text())
        changed = [
            f"{name}: {content['settings'].get(name)} → {settings.get(name)}"
            for name in sorted(settings.keys() | content["settings"].keys())
            if content["settings"].get(name) != settings.get(name)
        ]
        if changed:
            raise ValueError(
                f"{out} holds samples drawn with other settings (then → now):\n  "
                + "\n  ".join(changed)
                + "\nName another folder with --config.sample.out=FOLDER, or delete this one."
            )
        objects = content["objects"] | objects
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no samples.json; name another --config.sample.out")
    files.write_atomically(path, json.dumps({"settings": settings, "objects": objects}, indent=2) + "\n")


def _batches(todo: list[Task], done: dict[str, np.ndarray], size: int) -> Iterator[list[Task]]:
    """Objects that can be drawn together: as many inputs, targets and finished views."""
    groups: dict[tuple[int, int, int], list[Task]] = {}
    for task in todo:
        groups.setdefault((len(task.inputs), len(task.targets), len(done[task.name])), []).append(task)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _partial(out: epath.Path, task: Task) -> epath.Path:
    return out / "unfinished" / task.name


def _read_partial(out: epath.Path, task: Task) -> np.ndarray:
    """The views that an interrupted run has finished, without a gap, (done, height, width, 3) uint8."""
    pictures = []
    while (path := _partial(out, task) / f"{len(pictures):06d}.png").exists() and len(pictures) < len(task.targets):
        pictures.append(images.load_png(path))
    return np.stack(pictures) if pictures else np.zeros((0, *task.inputs.shape[1:]), np.uint8)


def _write(out: epath.Path, task: Task, drawn: np.ndarray, size: int) -> None:
    cameras = Camera.stack([*task.cameras, *task.targets])
    scale = max(1, 128 // size)
    columns = 8
    rows = [drawn] if task.truth is None else [drawn, task.truth]
    sheet = images.make_sheet(task.inputs, rows, columns=columns, scale=scale)
    images.save_png(out / "sheets" / f"{task.name}.png", sheet)
    images.save_gif(out / "gifs" / f"{task.name}.gif", drawn, fps=8, scale=scale)
    # Last, because an object whose folder exists is finished.
    srn.write_object(out / "views" / task.name, np.concatenate([task.inputs, drawn]), cameras)
    _partial(out, task).rmtree()
