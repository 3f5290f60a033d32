"""The comparison of samplers: what it measures, and that what is measured is kept."""

import functools
import json

import numpy as np
import pytest

from benchmarks import record, samplers
from threedim.output import images
from threedim.sampling import Settings
from threedim.training import loop


@pytest.fixture(scope="module")
def pictures():
    """Two objects, three seeds, four views of which two are drawn again; and the truth."""
    rng = np.random.default_rng(0)
    truth = rng.integers(60, 200, (2, 4, 16, 16, 3), np.uint8)
    noise = rng.normal(0, 8, (2, 3, 6, 16, 16, 3))
    drawn = np.clip(np.concatenate([truth, truth[:, :2]], axis=1)[:, None] + noise, 0, 255).astype(np.uint8)
    return drawn, truth


def test_measures(pictures):
    drawn, truth = pictures
    rows = samplers.measure(drawn, truth, 2)
    assert {name: len(values) for name, values in rows.items()} == dict.fromkeys([*samplers.MEASURES, "independent"], 3)
    error = np.mean((drawn[:, 1, :4].astype(float) - truth) ** 2, axis=(2, 3, 4))
    np.testing.assert_allclose(rows["psnr"][1], np.mean(10 * np.log10(255**2 / error)), rtol=1e-4)
    again = np.mean((drawn[:, 2, :2].astype(float) - drawn[:, 2, 4:]) ** 2)
    np.testing.assert_allclose(rows["agreement"][2], 10 * np.log10(255**2 / again), rtol=1e-6)
    # The second drawing equals the first: as good as can be, and of no effect on what is measured against the truth.
    copied = drawn.copy()
    copied[:, :, 4:] = copied[:, :, :2]
    better = samplers.measure(copied, truth, 2)
    assert min(better["agreement"]) > 70 > max(rows["agreement"])
    assert better["psnr"] == rows["psnr"]
    assert max(better["independent"]) < 40


def test_worse_is_more_than_noise():
    reference = {name: [1.0, 1.1, 0.9, 1.0] for name in samplers.MEASURES}
    assert samplers.worse_in(reference, reference) == []
    assert samplers.worse_in({name: [0.8, 0.9, 0.7, 0.8] for name in reference}, reference) == [
        "psnr",
        "ssim",
        "agreement",
    ]
    assert samplers.worse_in({name: [1.2, 1.3, 1.1, 1.2] for name in reference}, reference) == ["patch_distance"]
    assert samplers.worse_in({name: [0.5, 1.5, 0.7, 1.1] for name in reference}, reference) == []


def test_candidates():
    for weight in (0.0, 2.0):
        rows = samplers.candidates(weight, False, [8, 250])
        assert next(iter(rows)) == samplers.REFERENCE == "ancestral 250"
        assert rows[samplers.REFERENCE] == Settings(guidance_weight=weight)
        assert rows["preset fast"].guidance_weight == weight
        assert len(set(rows.values())) == len(rows)
        assert any("guided in" in name for name in rows) == (weight > 0)


def test_samplers_are_compared_and_what_is_measured_is_kept(tiny_config, tmp_path, monkeypatch):
    tiny_config.train.num_steps = 1
    tiny_config.sample.num_views, tiny_config.sample.guidance_weight = 2, 1.0
    tiny_config.model.image_size, tiny_config.data.procedural.size = 16, 16
    tiny_config.model.attn_resolutions = (8,)
    p = tiny_config.data.procedural
    p.num_train_objects, p.num_test_objects, p.views, p.test_views, p.samples = 1, 2, 3, 3, 1
    tiny_config.data.source = ""
    loop.train(tiny_config, tmp_path / "run")
    rows = {
        samplers.REFERENCE: Settings(2, 1.0),
        "2M 2": Settings(2, 1.0, solver="dpm_solver_2m"),
        "preset fast": Settings(2, 1.0, guidance_interval=(-1.0, 1.0)),
    }
    monkeypatch.setattr(samplers, "candidates", lambda weight, fresh, steps: dict(rows))
    compare = functools.partial(samplers.compare, tiny_config, tmp_path / "run", 2, [2], 1)
    out = compare()
    content = json.loads((out / "samplers.json").read_text())
    assert list(content["figures"]) == list(content["heads"]) == list(rows)
    assert all(head.keys() == set(record.HEAD) for head in content["heads"].values())
    assert [row["evaluations"] for row in content["figures"].values()] == [4, 4, 3]
    assert content["protocol"]["views"] == 2
    lines = (out / "samplers.md").read_text().splitlines()
    assert len(lines) == 5
    assert "(reference)" in lines[2]
    assert images.load_png(out / "samplers.png").shape[:2] == (700, 1600)
    assert len(list((out / "sheets").iterdir())) == 3

    # Only what is new is drawn; a changed protocol is refused.
    drawn = []
    monkeypatch.setattr(samplers, "draw", lambda *args: drawn.append(args[4]) or real(*args))
    real = samplers_draw
    rows["2M 3"] = Settings(3, 1.0, solver="dpm_solver_2m")
    # As it was written before rows had heads.
    (out / "samplers.json").write_text(json.dumps({"protocol": content["protocol"], "samplers": content["figures"]}))
    compare()
    content = json.loads((out / "samplers.json").read_text())
    assert (len(content["figures"]), list(content["heads"])) == (4, ["2M 3"])
    assert drawn == [rows["2M 3"]]
    with pytest.raises(ValueError, match="was measured otherwise"):
        samplers.compare(tiny_config, tmp_path / "run", 3, [2], 1)
    tiny_config.sample.cameras = "orbit"
    with pytest.raises(ValueError, match="no true views"):
        compare()


samplers_draw = samplers.draw
