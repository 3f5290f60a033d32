"""The commands that reproduce the paper (docs/results.md), on a stand-in for SRN's release."""

import json
import zipfile

import numpy as np
import pytest
from commands import run_python
from test_inception import make_entry

from threedim.data import srn
from threedim.evaluation.metrics.inception import entry_shapes
from threedim.procedural import shapes
from threedim.rendering import raycast, viewpoints

SIZE = 16
# A network and a field that compile in seconds; the rest is as in configs/srn_cars.py.
NETWORK = {"image_size": SIZE, "ch": 32, "ch_mult": (1, 1), "emb_ch": 8, "num_res_blocks": 0, "attn_resolutions": (8,)}
NETWORK |= {"attn_heads": 2, "dtype": "float32"}
TRAIN = {"batch_size": 4, "num_steps": 2, "num_workers": 0, "warmup_examples": 8, "sample_every": 0}
FIELD = {"levels": 1, "base_resolution": 4, "samples": 4, "rays_per_step": 32, "num_steps": 4, "proposal_bins": 8}
FIELD |= {"proposal_resolution": 4, "proposal_updates": 16, "orientation_weight": 0.0}


def write_release(folder):
    """cars_train.zip, cars_val.zip and cars_test.zip as SRN releases them: 50 views to train, 251 to test."""
    folder.mkdir()
    intrinsics = viewpoints.default_intrinsics(SIZE)
    spiral = viewpoints.spiral_cameras(251, viewpoints.RADIUS, intrinsics)
    for split, seeds in (("train", (0, 1, 2)), ("val", (3,)), ("test", (4, 5))):
        unpacked = folder.parent / f"cars_{split}"
        for seed in seeds:
            random = viewpoints.sphere_cameras(50, viewpoints.RADIUS, intrinsics, seed)
            camera = random if split == "train" else spiral
            views = raycast.render_views(shapes.make_shape("car", seed), camera, SIZE, 1)
            srn.write_object(unpacked / f"{seed:032x}", views, camera)
        with zipfile.ZipFile(folder / f"cars_{split}.zip", "w") as archive:
            for path in sorted(unpacked.rglob("*.*")):
                archive.write(path, path.relative_to(folder.parent))


@pytest.mark.slow
def test_from_the_zips_to_the_scores(tmp_path):
    write_release(tmp_path / "srn")
    np.savez(tmp_path / "inception.npz", **{name: make_entry(name, shape) for name, shape in entry_shapes().items()})
    flags = [
        f"--config.{name}={value}" for name, value in (("data.source", tmp_path / "srn"), ("sample.batch_size", 2))
    ]
    flags += [f"--config.model.{name}={value}" for name, value in NETWORK.items()]
    flags += [f"--config.train.{name}={value}" for name, value in TRAIN.items()]
    flags += [f"--config.data.dir={tmp_path / 'data'}", "--config.sample.num_steps=2", "--compilation_cache="]
    run, fid = tmp_path / "run", f"inception={tmp_path / 'inception.npz'}"

    def threedim(mode, *more):
        command = ("-m", "threedim.main", "--config=configs/srn_cars.py", f"--mode={mode}", f"--workdir={run}")
        done = run_python(*command, *flags, *more)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert "train: 3 objects, 150 views of 16 px" in threedim("prepare")
    threedim("train")
    threedim("evaluate")
    whole = json.loads((run / "evaluation/step_0000002/results.json").read_text())
    assert (whole["num_objects"], whole["num_views"]) == (2, 500)
    assert all(one["input_views"] == [64] for one in whole["objects"].values())
    page = (run / "evaluation/step_0000002/report.html").read_text()
    assert "SRN cars" in page
    assert "64 px; the paper's" not in page

    threedim(
        "evaluate", "--config.evaluate.max_views=5", f"--config.evaluate.out={run / 'few'}", f"--config.evaluate.{fid}"
    )
    few = json.loads((run / "few/results.json").read_text())
    assert few["num_views"] == 10
    assert few["dataset"]["fid"] > 0
    assert "Only 5 views of each object" in (run / "few/report.html").read_text()

    score = ["-m", "threedim.evaluation.consistency", "--compilation_cache=", f"--out={tmp_path / 'scores'}"]
    score += [
        f"--views=3dim={run / 'evaluation/step_0000002/views'}",
        f"--views=real={tmp_path / 'data/unpacked/cars_test'}",
    ]
    done = run_python(
        *score, *(f"--set={name}={value}" for name, value in FIELD.items()), "--max_objects=1", f"--{fid}"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "scores/results.json").read_text())
    assert (results["settings"]["input_views"], list(results["rows"])) == ([64], ["3dim", "real"])
    for row in results["rows"].values():
        (one,) = row["objects"].values()
        assert (one["num_views"], len(one["held_out"])) == (251, 25)
        assert row["fid"] > 0
