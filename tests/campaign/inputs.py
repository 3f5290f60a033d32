"""Small valid inputs of every kind that the project reads, how it reads them, and the commands that do."""

import dataclasses
import functools
import itertools
import json
import pathlib
import shutil
import time
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import PIL.Image
import trimesh
from etils import epath

import conftest  # isort: skip
import gltf_files  # isort: skip
import layouts  # isort: skip
import synthetic  # isort: skip
import test_other_meshes  # isort: skip
import test_ply  # isort: skip
import torch_files  # isort: skip
from commands import REPOSITORY, flags_of  # isort: skip

import threedim
from threedim import config as config_lib
from threedim import locks, main, pixels, sample
from threedim.consistency import results
from threedim.consistency.field import FieldSettings
from threedim.data import objects, records, release, srn
from threedim.errors import UserError
from threedim.evaluation import sampled
from threedim.evaluation.metrics.torch_files import read_state_dict
from threedim.rendering import render
from threedim.rendering.meshes import load_mesh
from threedim.tasks import Task
from threedim.training import checkpoints, loop, metrics, run_info
from threedim.training.step import init_state

SIZE = 8
_MESHES = {"glb": "box.glb", "gltf": "box.gltf", "obj": "box.obj", "dae": "box.dae", "3mf": "box.3mf"}
_MESHES |= {"off": "box.off", "stl": "box.stl", "stl, text": "box.stl", "ply": "box.ply", "ply, text": "box.ply"}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of input. ``read`` and ``command`` take the folder of the case; all is below ``inputs``."""

    make: Callable[[pathlib.Path], None]
    read: Callable[[pathlib.Path], Any]
    is_sealed: bool = False  # has checksums: what is read is as it was, or an error
    changed: str = "**/*"  # the files that are damaged
    writes: bool = False  # reading replaces files
    command: Callable[[pathlib.Path], list[str]] | None = None  # arguments of ``python -m``


def kinds(inputs: pathlib.Path) -> dict[str, Kind]:
    """All kinds by name. ``inputs`` holds the valid ones, and what they need."""
    c = conftest.make_config(inputs / "objects", inputs / "data")
    program = ["threedim.main", "--config=configs/base.py", "--compilation_cache=", *flags_of(c)]

    def command(*arguments):
        return lambda folder: [*program, *(each.replace("FOLDER", str(folder)) for each in arguments)]

    def render_command(folder):
        few = ["--views=2", "--size=8", "--samples=1", "--workers=1"]
        return ["threedim.data.render", f"--meshes={folder / 'meshes'}", f"--out={folder / 'out'}", *few]

    prepare = ("--mode=prepare", "--config.data.dir=FOLDER/out", "--config.data.source=FOLDER/objects")
    run = functools.partial(shutil.copytree, inputs / "run", dirs_exist_ok=True)
    resume = command("--mode=train", "--workdir=FOLDER", "--config.train.num_steps=3")
    sampling = command("--mode=sample", "--workdir=FOLDER", "--config.sample.num_views=1")
    with_weights = command(
        "--mode=sample",
        "--workdir=FOLDER/out",
        "--config.sample.weights=FOLDER/w.safetensors",
        "--config.sample.num_views=1",
    )
    view = command(*prepare, "--config.data.num_test_objects=0")
    found = {
        "checkpoint": Kind(run, functools.partial(_restored, c), True, "checkpoints/**/*", command=resume),
        "config.json": Kind(run, functools.partial(_run_info, c), changed="config.json", command=sampling),
        "config.json, loaded": Kind(run, _load, changed="config.json"),
        "metrics.jsonl": Kind(run, _log, changed="metrics.jsonl", writes=True, command=resume),
        "weights": Kind(functools.partial(_weights, inputs), _loaded, True, command=with_weights),
        "records": Kind(
            functools.partial(shutil.copytree, inputs / "data", dirs_exist_ok=True),
            _records,
            True,
            command=command(
                "--mode=train", "--workdir=FOLDER/out", "--config.train.num_steps=1", "--config.data.dir=FOLDER"
            ),
        ),
        "zip": Kind(
            functools.partial(_zip, inputs),
            lambda folder: _unpacked(folder, folder.parent / "unpacked"),
            True,
            command=command(
                *prepare[:2],
                "--config.data.source=FOLDER",
                "--config.data.train_split=cars",
                "--config.data.num_test_objects=0",
            ),
        ),
        "samples.json, views": Kind(functools.partial(_sampled, inputs), _scored, writes=False),
        "unfinished views": Kind(_unfinished, _read_unfinished, changed="unfinished/**/*"),
        "render.json": Kind(_rendered, _render_again, changed="out/render.json", writes=True, command=render_command),
        "consistency": Kind(_consistency, _collected, writes=True),
        "lock": Kind(_lock, _locked, changed=".lock", writes=True),
        "config file": Kind(
            _config,
            _parsed,
            command=lambda folder: [
                "threedim.main",
                f"--config={folder / 'c.py'}",
                "--mode=sample",
                f"--workdir={folder / 'out'}",
            ],
        ),
    }
    writers = {"SRN": None, "NeRF": layouts.write_nerf, "nerfstudio": layouts.write_nerfstudio}
    writers |= {"COLMAP": layouts.write_colmap, "COLMAP, binary": layouts.write_colmap_binary}
    writers |= {"zero123": layouts.write_zero123}
    for name, write in writers.items():
        found[f"views, {name}"] = Kind(functools.partial(_views, write), _object, changed="objects/**/*", command=view)
    for name in _MESHES:
        found[f"mesh, {name}"] = Kind(functools.partial(_write_mesh, name), _mesh, command=render_command)
    for name in (".pth", ".pth, legacy", ".npz", ".safetensors"):
        # A zip has checksums.
        file = f"w{name.partition(',')[0]}"
        inception = command(
            "--mode=evaluate",
            f"--workdir={inputs / 'run'}",
            f"--config.evaluate.inception=FOLDER/{file}",
            "--config.evaluate.out=FOLDER/out",
            "--config.evaluate.input_view=0",
            "--config.sample.num_steps=1",
        )
        found[f"state_dict, {name}"] = Kind(
            functools.partial(_state_dict, name),
            lambda folder, file=file: read_state_dict(folder / file),
            name in (".pth", ".npz"),
            command=inception,
        )
    return found


def make(folder):
    """What the kinds are made from: data, and a run of two steps."""
    synthetic.make_objects(folder / "objects", count=4, views=5, size=SIZE)
    c = conftest.make_config(folder / "objects", folder / "data")
    c.train.num_steps, c.train.checkpoint_every = 2, 1
    loop.train(c, folder / "run")


# Checkpoints, weights, logs.


@functools.cache
def _state_shapes(network, recipe):
    return jax.eval_shape(lambda: init_state(network, recipe))


def _restored(c, folder):
    shapes = _state_shapes(config_lib.network(c), config_lib.recipe(c))
    with checkpoints.Checkpoints(folder, keep_last=3) as saved:
        return saved.latest_step(), saved.restore(shapes), threedim.load(folder).params


def _run_info(c, folder):
    return run_info.check_run_info(folder, c), run_info.resized_at(folder, 2, 4)


def _load(folder):
    model = threedim.load(folder)
    return model.sampler, model.config.to_json(), model.params


def _log(folder):
    metrics.MetricWriter(folder, start_step=2).close()
    return (folder / "metrics.jsonl").read_text()


def _weights(inputs, folder):
    from threedim import weights_file

    model = threedim.load(inputs / "run")
    folder.mkdir()
    weights_file.save_weights(folder / "w.safetensors", model.params, model.config, training_steps=2, dtype="float32")


def _loaded(folder):
    model = threedim.load(folder / "w.safetensors")
    return model.params, model.step, model.config.to_json()


# Data.


def _records(folder):
    info, found = records.read_info(folder / "records"), []
    for split in ("train", "test"):
        dataset = records.open_split(folder / "records", split)
        for index in range(len(dataset)):
            views = dataset[index]
            found.append((dataset.names[index], *views.decode(), dataset.views(index, [1], size=4)))
    return found, info.fingerprint


def _views(write, folder):
    if write is None:
        return synthetic.make_objects(folder / "objects", count=1, views=3, size=SIZE)
    return write(folder / "objects" / "one", *layouts.make_scene(width=16, height=16, views=3))


def _object(folder):
    return [
        (one.name, *one.decode(), one.warnings, one.unread)
        for one in map(objects.read_object, objects.find_objects(folder / "objects"))
    ]


def _zip(inputs, folder):
    folder.mkdir()
    methods = itertools.cycle((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(folder / "cars.zip", "w") as archive:
        for path, method in zip(sorted((inputs / "objects").rglob("*")), methods, strict=False):
            archive.write(path, f"cars/{path.relative_to(inputs / 'objects')}", method)


def _unpacked(folder, out):
    shutil.rmtree(out, ignore_errors=True)
    found = pathlib.Path(release.find_split(folder, "cars", out))
    return {str(path.relative_to(found)): path.read_bytes() for path in found.rglob("*") if path.is_file()}


def _sampled(inputs, folder):
    dataset = records.open_split(inputs / "data/records", "test")
    order = {"input_views": [1], "target_views": [0, 2, 3, 4]}
    for index, name in enumerate(dataset.names):
        srn.write_object(folder / "views" / name, *dataset.views(index, [1, 0, 2, 3, 4]))
    content = {"settings": {"cameras": "object"}, "objects": dict.fromkeys(dataset.names, order)}
    (folder / "samples.json").write_text(json.dumps(content))


def _scored(folder):
    inputs = folder.parent / "inputs"
    dataset = records.open_split(inputs / "data/records", "test")
    tasks = [Task(name, [1], [0, 2, 3, 4], None, "") for name in dataset.names]
    found = sampled.SampledViews(folder).find(tasks)
    cameras = [dataset.views(index, [0, 2, 3, 4])[1] for index in range(len(tasks))]
    return [sampled.read_views(found[task.name], each, SIZE) for task, each in zip(tasks, cameras, strict=True)]


def _unfinished(folder):
    (folder / "unfinished/one").mkdir(parents=True)
    for index in range(3):
        picture = np.random.default_rng(index).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        PIL.Image.fromarray(picture).save(folder / f"unfinished/one/{index:06d}.png")


def _read_unfinished(folder):
    return sample._read_finished(epath.Path(folder), Task("one", [0], [1, 2, 3, 4], None, ""), SIZE)


# Meshes.


def _write_mesh(name, folder):
    folder = folder / "meshes"
    folder.mkdir(parents=True)
    path, box = folder / _MESHES[name], trimesh.creation.box([1, 2, 3])
    if name in ("gltf", "obj", "dae"):
        PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)).save(folder / "t.png")
    if name in ("glb", "gltf"):
        file = gltf_files.File()
        texture = file.texture(np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8))
        file.add(material={"pbrMetallicRoughness": {"baseColorTexture": texture, "baseColorFactor": [1, 0.5, 1, 1]}})
        file.write(path.with_suffix(".glb"))
        if name == "gltf":
            path.with_suffix(".glb").unlink()
            (folder / "b.bin").write_bytes(file.chunk)
            file.root["buffers"] = [{"byteLength": len(file.chunk), "uri": "b.bin"}]
            file.root["images"] = [{"uri": "t.png"}]
            path.write_text(json.dumps(file.root))
    elif name == "obj":
        path.write_text(
            "mtllib m.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 1\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nvn 0 0 1\n"
            "usemtl m\nf 1/1/1 2/2/1 3/3/1 4/4/1\nusemtl n\nf -1 -2 -3\n"
        )
        (folder / "m.mtl").write_text("newmtl m\nKd 1 0.5 0\nmap_Kd -s 2 2 1 t.png\nnewmtl n\nKd 0 1 0\nd 0.5\n")
    elif name == "dae":
        texture = '<diffuse><texture texture="p" texcoord="UV"/></diffuse>'
        path.write_text(test_other_meshes.DAE.format(up="Y_UP", material=texture).replace("my%20map", "t"))
    elif name.startswith("ply"):
        colors = test_ply.colors_of(("red", "green", "blue"), test_ply.COLORS)
        test_ply.write(path, colors, text=name.endswith("text"))
    else:
        box.export(path, file_type="stl_ascii" if name == "stl, text" else None)


def _mesh(folder):
    found = render.find_meshes(folder / "meshes")
    meshes = [load_mesh(path, inside=folder / "meshes") for path in found.values()]
    return meshes, [render.render_views(mesh, render.ViewSettings(2, SIZE).cameras("a"), SIZE, 1) for mesh in meshes]


def _rendered(folder):
    _write_mesh("obj", folder)
    _render_again(folder)


def _render_again(folder):
    return render.render_meshes(folder / "meshes", folder / "out", render.ViewSettings(2, SIZE, 1), num_workers=1)


# The rest.


def _state_dict(name, folder):
    rng = np.random.default_rng(0)
    arrays = {"a.weight": rng.normal(size=(3, 4)).astype("f4"), "a.bias": rng.normal(size=3).astype("f4")}
    arrays["count"] = np.array(7)
    folder.mkdir()
    path = folder / f"w{name.partition(',')[0]}"
    if name == ".npz":
        np.savez(path, **arrays)
    elif name == ".safetensors":
        from safetensors.numpy import save_file

        save_file(arrays, path)
    else:
        path.write_bytes(torch_files.write(arrays, "legacy" in name))


_SETTINGS = results.ScoreSettings(FieldSettings(), (0,), 0, 0)


def _consistency(folder):
    figures = {"psnr": 20.0, "ssim": 0.5, "input_psnr": 21.0, "sharpness": 1.0, "fit_seconds": 1.0}
    row = {"folder": "views", "bounds": {"near": 1.0, "far": 3.0, "half_width": 1.3}}
    for name, content in {
        "settings.json": {"seed": 0},
        "one/row.json": row,
        "one/fid.json": {"fid": 3.0, "of": "", "warnings": []},
        "one/scores/a.json": figures | {"num_views": 5, "held_out": [1]},
        "one/scores/b.json": figures | {"num_views": 5, "held_out": [1]},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    pixels.save_png(folder / "one/strips/a.png", np.zeros((4, 8, 3), np.uint8))


def _collected(folder):
    results.claim(epath.Path(folder) / "settings.json", {"seed": 0}, "scores made with")
    return results.collect(epath.Path(folder), _SETTINGS), (folder / "report.html").read_text()


def _lock(folder):
    folder.mkdir()
    holder = {
        "token": "0",
        "what": "trains in",
        "since": 1.0,
        "host": locks._here()["host"],
        "pid": 2**22,
        "started": 1.0,
    }
    (folder / ".lock").write_text(json.dumps(holder | {"alive": time.time()}))


def _locked(folder):
    with locks.hold(folder, "tests"):
        return True


def _config(folder):
    folder.mkdir()
    text = (REPOSITORY / "configs/demo.py").read_text()
    (folder / "c.py").write_text(text)


def _parsed(folder):
    if problem := main._config_problem([f"--config={folder / 'c.py'}"]):
        raise UserError(problem)
    c = main.flags.FLAGS["config"].parser.parse(str(folder / "c.py"))
    config_lib.expand_paths(c)
    config_lib.check_seeds(c)
    parts = config_lib.network(c), config_lib.process(c), config_lib.recipe(c), config_lib.sampler_settings(c)
    return c.to_json(), repr(parts)
