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
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from threedim import config as config_lib
from threedim import distributed, files, pretrained, provenance, weights
from threedim.cameras import Camera
from threedim.data import srn
from threedim.errors import MissingError, UserError
from threedim.output import images
from threedim.progress import progress
from threedim.sampling import sample_views
from threedim.tasks import Task, Views, make_tasks
from threedim.training import checkpoints, run_info
from threedim.training.step import abstract_params


@dataclasses.dataclass(frozen=True)
class _Trained:
    """Where weights come from: a checkpoint of a run, or a file."""

    name: str
    config: dict[str, Any]
    step: int
    identity: str  # of a file: its sha256
    load: Callable[[Any, jax.sharding.Sharding], Any]  # from the parameters' shapes and where they go


def sample(config: ml_collections.ConfigDict, workdir: epath.PathLike) -> epath.Path:
    """Draws the views that ``config.sample`` asks for with the averaged weights of the run in ``workdir``, or a file's.

    Returns:
      The output folder.

    Raises:
      FileNotFoundError: if there is no checkpoint, no such file of weights, or no such data.
      ValueError: if the settings contradict the run, the data, or an output folder of other settings; if weights are
        damaged.
    """
    workdir = epath.Path(workdir)
    s = config.sample
    if s.batch_size < 1:
        raise UserError(f"sample.batch_size must be at least 1, got {s.batch_size}")
    devices = jax.local_devices()
    if s.batch_size % len(devices):
        raise UserError(f"sample.batch_size {s.batch_size} does not divide over this process's {len(devices)} devices")
    trained = _find_weights(config, workdir)
    denoiser, process, settings = (
        config_lib.denoiser(config),
        config_lib.process(config),
        config_lib.sample_settings(config),
    )
    _check_same_model(trained, config)
    tasks = distributed.lead_first(lambda: make_tasks(config))
    # Each process draws its own objects on its own devices: nobody waits, and none of them needs the others.
    mesh = jax.sharding.Mesh(np.asarray(devices), ("batch",))
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))
    params = trained.load(abstract_params(denoiser.network), whole)

    out = output_folder(config, workdir)
    # Step and weights last: the section has them too, but as asked for, not as found.
    found = {"checkpoint_step": trained.step, "weights": trained.identity}
    claimed = {**_plain(s), **dataclasses.asdict(settings), **found}
    distributed.lead_first(lambda: _claim(out, claimed, tasks, write=distributed.is_lead()))
    todo = [task for task in tasks if not (out / "views" / task.name).exists()]
    if distributed.is_lead():
        for task in tasks:
            # Killed after the object was written and before this was deleted.
            if task not in todo and _partial(out, task).exists():
                _partial(out, task).rmtree()
    distributed.check_same("what is to be drawn", [task.name for task in todo])
    todo = todo[jax.process_index() :: jax.process_count()]
    if not todo:
        print(f"nothing to do: {len(tasks)} object(s) are drawn already, or by other processes")
    views = sum(len(task.target_views) for task in todo)
    size = denoiser.network.image_size
    done = {task.name: _read_partial(out, task, size) for task in todo}
    with progress(views, initial=sum(map(len, done.values())), desc="views", enabled=views > 0) as bar:
        finished = bar.initial
        for batch in _batches(todo, done, s.batch_size):
            # A last batch that is not full is filled up, and the fill thrown away: one compiled program serves all.
            filled = (batch * s.batch_size)[: min(s.batch_size, -(-len(todo) // len(devices)) * len(devices))]

            def on_view(index: int, picture: jax.Array, batch=batch) -> None:
                nonlocal finished
                for task, pixels in zip(batch, images.to_uint8(np.asarray(picture)), strict=False):
                    images.save_png(_partial(out, task) / f"{index:06d}.png", pixels)
                finished += len(batch)
                bar.set(finished)

            loaded = [task.load() for task in batch]
            filled_views = (loaded * s.batch_size)[: len(filled)]
            keys = [jax.random.fold_in(jax.random.key(s.seed), zlib.crc32(t.name.encode())) for t in filled]
            inputs, known, targets, before, keys = jax.device_put(
                (
                    np.stack([images.to_float(each.inputs) for each in filled_views]),
                    Camera.stack([each.cameras for each in filled_views]),
                    Camera.stack([each.targets for each in filled_views]),
                    np.stack([images.to_float(done[task.name]) for task in filled]),
                    jax.numpy.stack(keys),
                ),
                split,
            )
            drawn = sample_views(
                denoiser,
                params,
                inputs,
                known,
                targets,
                keys,
                process=process,
                settings=settings,
                drawn=before,
                on_view=on_view,
            )
            for task, views, pictures in zip(batch, loaded, images.to_uint8(np.asarray(drawn)), strict=False):
                _write(out, task, views, pictures)
    for what, folder in (("views in SRN format", "views"), ("contact sheets", "sheets"), ("GIFs", "gifs")):
        print(f"{what + ':':21}{out / folder}")
    return out


def output_folder(config: ml_collections.ConfigDict, workdir: epath.Path) -> epath.Path:
    """Where ``sample`` writes: ``config.sample.out``, or a folder in the workdir named by what the weights are of."""
    if config.sample.out:
        return epath.Path(config.sample.out)
    if config.sample.weights:
        return workdir / "views" / epath.Path(config.sample.weights).stem
    return workdir / "views" / f"step_{_checkpoint_step(config, workdir):07d}"


def _find_weights(config: ml_collections.ConfigDict, workdir: epath.Path) -> _Trained:
    """Looks at the weights, but does not load them yet."""
    s = config.sample
    if not s.weights:
        step = _checkpoint_step(config, workdir)

        def restore(shapes: Any, sharding: jax.sharding.Sharding) -> Any:
            placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
            return checkpoints.restore_params(workdir, placed, step=step)

        return _Trained(f"the run in {workdir}", run_info.read_run_info(workdir)[0], step, "", restore)
    if s.checkpoint_step is not None:
        raise UserError(
            f"sample.weights={s.weights} is a file of one step; sample.checkpoint_step {s.checkpoint_step} chooses "
            "among the workdir's checkpoints: name one of the two"
        )
    path = pretrained.resolve(s.weights)
    if not weights.is_weights_file(path):
        raise UserError(
            f"sample.weights must name a {weights.SUFFIX} file, or weights that come with the package, got "
            f"{s.weights}; a run's folder is --workdir"
        )
    info = weights.read_info(path)
    return _Trained(
        name=f"the network in {s.weights}",
        config=_plain(info.config),
        step=info.training_steps,
        identity=provenance.file_identity(path)["sha256"],
        load=lambda shapes, sharding: weights.load_weights(path, sharding)[1],
    )


def _checkpoint_step(config: ml_collections.ConfigDict, workdir: epath.Path) -> int:
    step = config.sample.checkpoint_step
    step = checkpoints.latest_step(workdir) if step is None else step
    if step is None:
        raise MissingError(f"no checkpoint in {workdir}: train first, or name the run's --workdir")
    return step


def _check_same_model(trained: _Trained, config: ml_collections.ConfigDict) -> None:
    """The weights' architecture and process must be those that sampling is asked for; only the dtype may differ."""
    lines = []
    for section, names in (("model", None), ("diffusion", None), ("data", ("pose",))):
        then, now = trained.config[section], _plain(config[section])
        for name in names or sorted(now.keys() | then.keys()):
            before = then.get(name, run_info.LATER_FIELDS.get(f"{section}.{name}"))
            after = now.get(name)
            if before != after and name not in ("dtype", "dropout"):
                lines.append(f"{section}.{name}: {before} → {after}")
    if lines:
        raise UserError(f"{trained.name} was trained with other settings (then → now):\n  " + "\n  ".join(lines))


def _plain(section: ml_collections.ConfigDict) -> dict[str, Any]:
    """As it looks after a round trip through JSON."""
    return json.loads(section.to_json())


def _claim(out: epath.Path, settings: dict[str, Any], tasks: list[Task], write: bool) -> None:
    """Checks that samples.json, if there is one, has the same settings; writes it if asked to."""
    settings = dict(settings)
    for name in ("num_objects", "objects_seed", "batch_size", "out"):  # they decide how much is drawn, not what
        settings.pop(name)
    settings = json.loads(json.dumps(settings))  # tuples are lists in a file
    path = out / "samples.json"
    objects = {task.name: {"input_views": task.input_views, "target_views": task.target_views} for task in tasks}
    if path.exists():
        content = json.loads(path.read_text())
        later = {name: run_info.LATER_FIELDS[f"sample.{name}"] for name in ("conditioning", "weights")}
        before = later | content["settings"]
        changed = [
            f"{name}: {before.get(name)} → {settings.get(name)}"
            for name in sorted(settings.keys() | before.keys())
            if before.get(name) != settings.get(name)
        ]
        if changed:
            raise UserError(
                f"{out} holds samples drawn with other settings (then → now):\n  "
                + "\n  ".join(changed)
                + "\nName another folder with --config.sample.out=FOLDER, or delete this one."
            )
        objects = content["objects"] | objects
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no samples.json; name another --config.sample.out")
    if write:
        files.write_atomically(path, json.dumps({"settings": settings, "objects": objects}, indent=2) + "\n")


def _batches(todo: list[Task], done: dict[str, np.ndarray], size: int) -> Iterator[list[Task]]:
    """Objects that can be drawn together: as many inputs, targets and finished views."""
    groups: dict[tuple[int, int, int], list[Task]] = {}
    for task in todo:
        key = (len(task.input_views), len(task.target_views), len(done[task.name]))
        groups.setdefault(key, []).append(task)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _partial(out: epath.Path, task: Task) -> epath.Path:
    return out / "unfinished" / task.name


def _read_partial(out: epath.Path, task: Task, size: int) -> np.ndarray:
    """The views that an interrupted run has finished, without a gap, (done, height, width, 3) uint8."""
    pictures = []
    wanted = len(task.target_views)
    while len(pictures) < wanted and (path := _partial(out, task) / f"{len(pictures):06d}.png").exists():
        pictures.append(images.load_png(path))
    return np.stack(pictures) if pictures else np.zeros((0, size, size, 3), np.uint8)


def _write(out: epath.Path, task: Task, views: Views, drawn: np.ndarray) -> None:
    scale = max(1, 128 // drawn.shape[-2])
    rows = [drawn] if views.truth is None else [drawn, views.truth]
    sheet = images.make_sheet(views.inputs, rows, columns=8, scale=scale)
    images.save_png(out / "sheets" / f"{task.name}.png", sheet)
    images.save_gif(out / "gifs" / f"{task.name}.gif", drawn, fps=8, scale=scale)
    # Last, because an object whose folder exists is finished.
    cameras = Camera.stack([*views.cameras, *views.targets])
    srn.write_object(out / "views" / task.name, np.concatenate([views.inputs, drawn]), cameras)
    _partial(out, task).rmtree()
