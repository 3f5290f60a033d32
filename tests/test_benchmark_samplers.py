"""The comparison of samplers: its measures, and how it resumes."""

import functools

import jax
import numpy as np
import pytest
from tiny import random_params

import threedim
from benchmarks import record, samplers
from threedim import config as config_lib
from threedim import pixels
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
    assert {name: len(values) for name, values in rows.items()} == dict.fromkeys([*samplers.MEASURES, "independent"], 3)
    error = np.mean((sampled[:, 1, :4].astype(float) - truth) ** 2, axis=(2, 3, 4))
    np.testing.assert_allclose(rows["psnr"][1], np.mean(10 * np.log10(255**2 / error)), rtol=1e-4)
    again = np.mean((sampled[:, 2, :2].astype(float) - sampled[:, 2, 4:]) ** 2)
    np.testing.assert_allclose(rows["agreement"][2], 10 * np.log10(255**2 / again), rtol=1e-6)
    # If the second views equal the first, they agree perfectly; against the truth nothing changes.
    copied = sampled.copy()
    copied[:, :, 4:] = copied[:, :, :2]
    better = samplers.measure(copied, truth, 2)
    assert min(better["agreement"]) > 70 > max(rows["agreement"])
    assert better["psnr"] == rows["psnr"]
    assert max(better["independent"]) < 40


def test_worse_means_by_more_than_noise():
    reference = {name: [1.0, 1.1, 0.9, 1.0] for name in samplers.MEASURES}
    rows = {
        shift: {name: [value + shift for value in values] for name, values in reference.items()} for shift in (-1, 1)
    }
    assert samplers.worse_in(reference, reference) == []
    assert samplers.worse_in(rows[-1], reference) == ["psnr", "ssim", "agreement"]
    assert samplers.worse_in(rows[1], reference) == ["patch_distance"]
    assert samplers.worse_in({name: [0.5, 1.5, 0.7, 1.1] for name in reference}, reference) == []


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_candidates(weight):
    reference = Settings(guidance_weight=weight)
    rows = samplers.candidates(reference, [8, 250])
    assert next(iter(rows)) == samplers.REFERENCE == "ancestral 250"
    assert (rows[samplers.REFERENCE], rows[samplers.FAST].guidance_weight) == (reference, weight)
    assert len(set(rows.values())) == len(rows)
    assert any("guided in" in name for name in rows) == (weight > 0)
    assert {rows["DDIM 8"].num_steps, rows["DDIM 8"].solver} == {8, "ddim"}


@pytest.mark.slow
def test_a_comparison_resumes_and_refuses_another_protocol(tiny_config, tmp_path, monkeypatch):
    c = tiny_config
    c.sample.num_views, c.data.source = 2, ""
    c.model.image_size, c.model.ch_mult, c.model.attn_resolutions, c.data.procedural.size = 16, (1,), (16,), 16
    p = c.data.procedural
    p.num_train_objects, p.num_test_objects, p.views, p.test_views, p.samples = 1, 2, 3, 3, 1
    model = threedim.Model(config_lib.sampler(c), random_params(config_lib.network(c)), c, 7)
    monkeypatch.setattr(threedim, "load", lambda workdir, step: model)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    rows = {samplers.REFERENCE: Settings(2, 0.0), samplers.FAST: Settings(2, 0.0)}
    monkeypatch.setattr(samplers, "candidates", lambda reference, steps: dict(rows))
    compare = functools.partial(samplers.compare, c, tmp_path / "run", 2, [2], 1)
    out = compare()
    assert out == tmp_path / "run/samplers_step_0000007"
    figures = record.read(out / "samplers.json")["figures"]
    assert list(figures["samplers"]) == list(rows)
    assert [row["evaluations"] for row in figures["samplers"].values()] == [2, 2]
    assert figures["protocol"]["views"] == 2

    sampled, real = [], samplers.sample
    monkeypatch.setattr(samplers, "sample", lambda *args: sampled.append(args[4]) or real(*args))
    rows["2M 2"] = Settings(2, 0.0, solver="dpm_solver_2m")
    compare()
    assert sampled == [rows["2M 2"]]
    again = record.read(out / "samplers.json")["figures"]["samplers"]
    assert {name: again[name] for name in figures["samplers"]} == figures["samplers"]
    lines = (out / "samplers.md").read_text().splitlines()
    assert len(lines) == 5
    assert "(reference)" in lines[2]
    assert pixels.load_png(out / "samplers.png").shape[:2] == (450, 1600)
    assert len(list((out / "sheets").iterdir())) == 3

    with pytest.raises(ValueError, match="has another protocol"):
        samplers.compare(c, tmp_path / "run", 3, [2], 1)
    c.sample.cameras = "orbit"
    with pytest.raises(ValueError, match="no true views"):
        compare()
