"""The comparison of samplers: its measures, and how it resumes."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest
from tiny import random_params

import threedim
from benchmarks import record, samplers
from threedim import config as config_lib
from threedim import pixels
from threedim.errors import UserError
from threedim.sampling import Settings


@pytest.fixture(scope="module")
def views():
    """Two objects, three seeds, four views of which two are sampled again; and the truth."""
    rng = np.random.default_rng(0)
    truth = rng.integers(60, 200, (2, 4, 16, 16, 3), np.uint8)
    noise = rng.normal(0, 8, (2, 3, 6, 16, 16, 3))
    sampled = np.clip(np.concatenate([truth, truth[:, :2]], axis=1)[:, None] + noise, 0, 255).astype(np.uint8)
    return sampled, truth


def test_measures(views):
    sampled, truth = views
    rows = samplers.measure(sampled, truth, 2)
    assert {name: len(values) for name, values in rows.items()} == dict.fromkeys([*samplers.MEASURES, "independent"], 2)
    error = np.mean((sampled[1, :, :4].astype(float) - truth[1]) ** 2, axis=(2, 3, 4))
    np.testing.assert_allclose(rows["psnr"][1], np.mean(10 * np.log10(255**2 / error)), rtol=1e-4)
    again = np.mean((sampled[0, :, :2].astype(float) - sampled[0, :, 4:]) ** 2, axis=(1, 2, 3, 4))
    np.testing.assert_allclose(rows["agreement"][0], np.mean(10 * np.log10(255**2 / again)), rtol=1e-6)
    # If the second views equal the first, they agree perfectly; against the truth nothing changes.
    copied = sampled.copy()
    copied[:, :, 4:] = copied[:, :, :2]
    better = samplers.measure(copied, truth, 2)
    assert min(better["agreement"]) > 70 > max(rows["agreement"])
    assert better["psnr"] == rows["psnr"]
    assert max(better["independent"]) < 40


def test_worse_means_on_the_same_objects():
    reference = {name: [1.0, 5.0, 9.0, 3.0] for name in samplers.MEASURES}
    noise = np.array([0.1, 0.2, 0.15, 0.1])  # far less than between objects
    rows = {sign: {name: list(values + sign * noise) for name, values in reference.items()} for sign in (-1, 1)}
    assert samplers.worse_in(reference, reference) == []
    assert samplers.worse_in(rows[-1], reference) == ["psnr", "ssim", "agreement"]
    assert samplers.worse_in(rows[1], reference) == ["patch_distance"]
    mixed = {name: list(np.add(values, [0.2, -0.2, 0.1, -0.1])) for name, values in reference.items()}
    assert samplers.worse_in(mixed, reference) == []


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_candidates(weight):
    base = Settings(guidance_weight=weight)
    rows = samplers.candidates(base, 250, [8, 32], [0.5, 6.0, weight], [1, 4])
    name, first = next(iter(rows.items()))
    assert (name, first.settings) == ("ancestral 250, always guided", base)
    fast = rows["preset fast"].settings
    assert "2M SDE 32" not in rows, "that is the preset"
    assert len({trial.settings for trial in rows.values()}) == len(rows) - 1, "only rows of more inputs share settings"
    assert {rows["DDIM 8"].settings.num_steps, rows["DDIM 8"].settings.solver} == {8, "ddim"}
    assert rows["fast, w = 0.5"].settings == dataclasses.replace(fast, guidance_weight=0.5)
    assert [rows[name].inputs for name in ("preset fast", "fast, 4 input views")] == [1, 4]
    assert not {"fast, 1 input views", f"fast, w = {weight:g}"} & set(rows), "those are the preset"


@pytest.mark.slow
def test_a_comparison_resumes_and_refuses_another_protocol(tiny_config, tmp_path, monkeypatch):
    c = tiny_config
    c.data.source = ""
    c.model.image_size, c.model.ch_mult, c.model.attn_resolutions, c.data.procedural.size = 16, (1,), (16,), 16
    p = c.data.procedural
    p.num_train_objects, p.num_test_objects, p.views, p.test_views, p.samples = 1, 2, 3, 3, 1
    model = threedim.Model(config_lib.sampler(c), random_params(config_lib.network(c)), c, 7)
    monkeypatch.setattr(samplers, "load", lambda config, workdir: (model, "sha"))
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    c.sample.input_views = (0, 2)
    rows = {name: samplers.Trial("2M SDE", Settings(2, 0.0)) for name in ("reference", "preset fast")}
    rows["fast, 2 input views"] = samplers.Trial("inputs", Settings(2, 0.0), 2)
    compare = functools.partial(samplers.compare, c, tmp_path / "run", 1, 2, 1, rows)
    out = compare()
    assert out == tmp_path / "run/samplers_step_0000007"
    figures = record.read(out / "samplers.json")["figures"]
    assert list(figures["samplers"]) == list(rows)
    assert [row["evaluations"] for row in figures["samplers"].values()] == [2, 2, 2]
    assert figures["protocol"]["views"] == [1]
    same, again, more = (row["measures"]["psnr"] for row in figures["samplers"].values())
    assert same == again != more

    sampled, real = [], samplers.sample
    monkeypatch.setattr(samplers, "sample", lambda *args: sampled.append(args[4]) or real(*args))
    rows["2M 2"] = samplers.Trial("2M", Settings(2, 0.0, solver="dpm_solver_2m"))
    compare()
    assert sampled == [rows["2M 2"]]
    again = record.read(out / "samplers.json")["figures"]["samplers"]
    assert {name: again[name] for name in figures["samplers"]} == figures["samplers"]
    lines = (out / "samplers.md").read_text().splitlines()
    assert len(lines) == 6
    assert "(reference)" in lines[2]
    assert pixels.load_png(out / "samplers.png").shape[:2] == (680, 1280)
    assert len(list((out / "sheets").iterdir())) == 4

    for wrong in ("--steps=8,x", "--steps=0", "--weights=-1", "--inputs=0"):
        values = {"steps": ["8"], "weights": [], "inputs": []}
        name, _, value = wrong[2:].partition("=")
        given = types.SimpleNamespace(config=c, workdir="x", reference=3, **values | {name: value.split(",")})
        with pytest.raises(UserError, match="--steps, --weights or --inputs: "):
            samplers._measure(given)
    with pytest.raises(UserError, match="--repeated=2 is more than --views=1"):
        samplers.compare(c, tmp_path / "run", 1, 2, 2, rows)
    with pytest.raises(ValueError, match="has another protocol"):
        samplers.compare(c, tmp_path / "run", 1, 3, 1, rows)
    rows["fast, 3 input views"] = samplers.Trial("inputs", Settings(2, 0.0), 3)
    with pytest.raises(ValueError, match="has 2 views, but rows use 3"):
        compare()
    del rows["fast, 3 input views"]
    with pytest.raises(ValueError, match="has not 2 views to sample"):
        samplers.compare(c, tmp_path / "run", 2, 2, 1, rows)
    c.sample.cameras = "orbit"
    with pytest.raises(ValueError, match="no true views"):
        compare()
