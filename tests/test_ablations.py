"""The ablations' configs, and each of them through the training loop and the sampler."""

import importlib
import json
import pathlib
import re
import runpy
import shutil

import jax
import numpy as np
import pytest
from tiny import random_cameras

import threedim
from configs import base, demo, shapes16, srn_cars, srn_chairs_star
from threedim import config as config_lib
from threedim import sample as sample_lib
from threedim.models.concat_unet import ConcatUNet
from threedim.models.xunet import XUNet
from threedim.output import images
from threedim.training import loop

WHOLE = {"cars": srn_cars, "chairs_star": srn_chairs_star, "demo": demo, "shapes16": shapes16}
CHANGES = {
    "image_to_image": {"sample.conditioning": "input"},
    "concat_unet": {"model.network": "concat_unet", "sample.batch_size": 4},
    "regression": {
        "diffusion.prediction": "x",
        "diffusion.regression": True,
        "train.uncond_prob": 0.0,
        "train.sample_steps": 1,
        "sample.preset": "paper",
        "sample.num_steps": 1,
        "sample.guidance_weight": 0.0,
        "sample.conditioning": "input",
    },
}


def flat(config, prefix=""):
    fields = {}
    for name, value in config.items():
        fields |= flat(value, f"{prefix}{name}.") if hasattr(value, "items") else {f"{prefix}{name}": value}
    return fields


# --- configs ---


@pytest.mark.parametrize("data", WHOLE)
@pytest.mark.parametrize("variant", CHANGES)
def test_an_ablation_changes_what_it_is_about_and_nothing_else(variant, data):
    path = pathlib.Path(__file__).parents[1] / "configs" / "ablations" / f"{variant}.py"
    config = runpy.run_path(str(path))["get_config"](data)  # as a file, not as a module: so does --config=
    whole = flat(WHOLE[data].get_config())
    expected = {name: value for name, value in CHANGES[variant].items() if whole[name] != value}
    changed = {name: value for name, value in flat(config).items() if whole[name] != value}
    assert changed == expected
    assert flat(config).keys() == whole.keys()
    assert type(config_lib.network(config)) is (ConcatUNet if variant == "concat_unet" else XUNet)
    config_lib.recipe(config)
    settings = config_lib.sample_settings(config)
    assert settings.conditioning == ("stochastic" if variant == "concat_unet" else "input")
    if variant == "regression":
        assert settings.evaluations(config_lib.process(config)) == 1
    assert config_lib.sample_settings(config, num_steps=config.train.sample_steps)


@pytest.mark.parametrize("variant", CHANGES)
def test_unknown_data_is_refused_with_a_list(variant):
    module = importlib.import_module(f"configs.ablations.{variant}")
    with pytest.raises(ValueError, match="cars, chairs_star, demo, shapes16, not for 'planes'"):
        module.get_config("planes")
    assert flat(module.get_config()) == flat(module.get_config("shapes16"))


def test_an_unknown_network_is_refused_with_a_list():
    config = base.get_config()
    config.model.network = "unet"
    with pytest.raises(ValueError, match=r"model\.network must be one of xunet, concat_unet, got 'unet'"):
        config_lib.network(config)


def test_the_whole_model_is_what_it_was():
    config = base.get_config()
    assert type(config_lib.network(config)) is XUNet
    assert config_lib.process(config) == threedim.Process("eps", regression=False)
    assert config_lib.sample_settings(config) == threedim.Settings(conditioning="stochastic")


# --- runs ---


@pytest.fixture
def tiny(tiny_config):
    """With a network that compiles faster still, to be trained for a step."""
    m = tiny_config.model
    m.ch_mult, m.attn_resolutions, m.num_res_blocks, m.emb_ch = (1,), (8,), 0, 8
    # Long and large enough steps for the layers that start at zero to leave their mark.
    t = tiny_config.train
    t.num_steps, t.learning_rate, t.warmup_examples, t.ema_half_life = 2, 0.1, 0, 1.0
    s = tiny_config.sample
    s.input_views, s.num_steps, s.num_views, s.guidance_weight = (0,), 8, 3, 0.0
    return tiny_config


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def whole_run(tiny, kept, tmp_path):
    """A run of the whole model and the views drawn from it, in a folder of its own."""
    if not (kept / "run").exists():
        loop.train(tiny, kept / "run")
        sample_lib.sample(tiny, kept / "run")
    return pathlib.Path(shutil.copytree(kept / "run", tmp_path / "run"))


def apply_variant(config, variant):
    config.update_from_flattened_dict(CHANGES[variant])


def some_views(seed=0):
    """An input picture with its camera, and two target cameras."""
    picture = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return picture, random_cameras(1, seed=seed)[0], random_cameras(2, seed=seed + 1)


def views_of(out):
    return {path.relative_to(out): images.load_png(path) for path in sorted(out.glob("views/*/rgb/*.png"))}


def test_regression_from_training_to_a_view(tiny, tmp_path):
    apply_variant(tiny, "regression")
    state = loop.train(tiny, tmp_path / "run")
    model = threedim.load(tmp_path / "run")
    assert model.process.regression

    picture, camera, targets = some_views()
    seen = []
    drawn = model.sample(picture, camera, targets, seed=3, on_view=lambda index, view: seen.append(view))
    np.testing.assert_array_equal(drawn, seen)
    # One call of the plain network on noise, for each view.
    network, key = config_lib.network(tiny), jax.random.key(3)
    for i in range(2):
        start = jax.random.fold_in(jax.random.fold_in(key, i), 0)
        z = jax.random.normal(start, (8, 8, 3))[None]
        pair = jax.tree.map(lambda leaf: leaf[None], threedim.Camera.stack([camera, targets[i]]))
        logsnr = np.asarray([[20.0, model.process.logsnr(np.float32(1.0))]], np.float32)
        x_hat = jax.jit(lambda *args: network.apply({"params": state.ema_params}, *args, train=False))(
            images.to_float(picture)[None], z, logsnr, pair, np.ones(1, bool)
        )[0]
        assert np.std(x_hat) > 0.01
        expected = images.to_uint8(np.asarray(x_hat))  # clips
        assert np.abs(drawn[i].astype(int) - expected).max() <= 1  # a last bit may decide how it is rounded
    assert not np.array_equal(drawn[0], drawn[1])

    with pytest.raises(ValueError, match="one step from noise"):
        model.sample(picture, camera, targets, settings=threedim.Settings())
    tiny.sample.num_steps = 4
    with pytest.raises(ValueError, match=re.escape("got 4, 0.0 and 't'")):
        sample_lib.sample(tiny, tmp_path / "run")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("train.sample_steps", 250, r"train.sample_steps\) must be 1"),
        ("sample.guidance_weight", 1.0, "sample.guidance_weight 0"),
        ("train.uncond_prob", 0.1, "train.uncond_prob must be 0, got 0.1"),
        ("diffusion.prediction", "eps", 'regression needs diffusion.prediction "x" or "v"'),
    ],
)
def test_a_regression_with_other_settings_is_refused_before_anything_is_done(tiny, tmp_path, field, value, said):
    apply_variant(tiny, "regression")
    tiny.train.sample_every = 1
    tiny.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=said):
        loop.train(tiny, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not pathlib.Path(tiny.data.dir).exists()


def test_image_to_image_from_the_whole_models_run(tiny, whole_run, tmp_path):
    """The first view is the whole model's, the second is not; and an interrupted rollout goes on from its files."""
    whole = views_of(whole_run / "views" / "step_0000002")
    apply_variant(tiny, "image_to_image")
    with pytest.raises(ValueError, match="conditioning: stochastic → input"):
        sample_lib.sample(tiny, whole_run)
    tiny.sample.out = str(tmp_path / "input")
    ablated = views_of(sample_lib.sample(tiny, whole_run))
    assert len(ablated) == 2 * 4
    assert ablated.keys() == whole.keys()
    for path, picture in ablated.items():
        same = np.array_equal(picture, whole[path])
        assert same == (int(path.stem) < 2), path  # the input and the first drawn view

    # As if it had been interrupted after the first of three views of one object.
    out = tmp_path / "again"
    name = sorted(path.name for path in (tmp_path / "input" / "views").iterdir())[0]
    (out / "unfinished" / name).mkdir(parents=True)
    first = tmp_path / "input" / "views" / name / "rgb" / "000001.png"
    (out / "unfinished" / name / "000000.png").write_bytes(first.read_bytes())
    (out / "samples.json").write_text((tmp_path / "input" / "samples.json").read_text())
    tiny.sample.out = str(out)
    resumed = views_of(sample_lib.sample(tiny, whole_run))
    for path, picture in ablated.items():
        np.testing.assert_array_equal(resumed[path], picture)


def test_concat_unet_from_training_to_a_view(tiny, tmp_path):
    apply_variant(tiny, "concat_unet")
    state = loop.train(tiny, tmp_path / "run")
    model = threedim.load(tmp_path / "run")
    assert type(model.denoiser.network) is ConcatUNet
    assert jax.tree.structure(model.params) == jax.tree.structure(state.params)
    drawn = model.sample(*some_views(), settings=threedim.Settings(2, 0.0))
    assert drawn.shape == (2, 8, 8, 3)
    tiny.model.network = "xunet"
    with pytest.raises(ValueError, match=re.escape('model.network: "concat_unet" → "xunet"')):
        loop.train(tiny, tmp_path / "run")
    with pytest.raises(ValueError, match=re.escape("model.network: concat_unet → xunet")):
        sample_lib.sample(tiny, tmp_path / "run")


def test_a_run_from_before_the_ablations_goes_on(tiny, whole_run):
    """Its config.json and samples.json lack the new fields."""
    run, out = whole_run, whole_run / "views" / "step_0000002"
    saved = json.loads((run / "config.json").read_text())
    for name in ("model.network", "diffusion.regression", "sample.conditioning"):
        section, field = name.split(".")
        del saved["config"][section][field]
    (run / "config.json").write_text(json.dumps(saved))
    samples = json.loads((out / "samples.json").read_text())
    del samples["settings"]["conditioning"]
    (out / "samples.json").write_text(json.dumps(samples))

    model = threedim.load(run)
    assert type(model.denoiser.network) is XUNet
    assert (model.process, model.settings) == (config_lib.process(tiny), config_lib.sample_settings(tiny))
    before = views_of(out)
    shutil.rmtree(sorted((out / "views").iterdir())[0])  # to be drawn again
    after = views_of(sample_lib.sample(tiny, run))
    assert before.keys() == after.keys()
    for path, picture in before.items():
        np.testing.assert_array_equal(after[path], picture)
    assert loop.train(tiny, run).step == 2
