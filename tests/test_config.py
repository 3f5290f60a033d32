"""From configs to objects, and how two configs are compared."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from threedim import config as config_lib
from threedim import settings as settings_lib
from threedim.augmentation import Augmentation
from threedim.configs import base, own_objects, shapes64, srn_cars, trained
from threedim.diffusion import Process
from threedim.errors import MissingError, UserError
from threedim.models.concat_unet import ConcatUNet
from threedim.models.xunet import XUNet
from threedim.sampling import Settings
from threedim.training import run_info
from threedim.training.step import Recipe


def test_the_defaults_are_the_papers():
    config = base.get_config()
    network = config_lib.network(config)
    assert isinstance(network, XUNet)
    assert (network.ch, network.ch_mult, network.emb_ch, network.num_res_blocks) == (256, (1, 2, 2, 4), 1024, 3)
    assert config_lib.process(config) == Process()
    assert config_lib.recipe(config) == Recipe(
        128, 1e-4, 10_000_000, 0.9, 0.99, 500_000.0, 0.05, 0.1, 0, num_steps=1_000_000
    )
    assert config_lib.sampler_settings(config) == Settings(num_steps=250, guidance_weight=3.0)
    assert not config_lib.denoiser(config).relative_poses
    assert srn_cars.get_config().sample.guidance_weight == 3.0


def test_every_field_reaches_its_object():
    config = base.get_config()
    config.model.network, config.data.pose, config.seed = "concat_unet", "relative", 7
    config.train.remat, config.train.microbatches, config.train.color_weight = "blocks", 2, 3.0
    config.data.augment.update({"orientation": True, "scale": (0.5, 2.0), "hue": 0.25})
    sampler = config_lib.sampler(config, num_steps=9)
    assert isinstance(sampler.denoiser.network, ConcatUNet)
    assert sampler.denoiser.network.remat == "blocks"
    assert sampler.denoiser.relative_poses
    assert sampler.settings.num_steps == 9
    recipe = config_lib.recipe(config)
    assert (recipe.microbatches, recipe.color_weight, recipe.seed, recipe.relative_poses) == (2, 3.0, 7, True)
    assert recipe.augmentation == Augmentation(True, (0.5, 2.0), 0.25)
    hash(sampler)  # a key of the compilation cache
    assert {field.name for field in dataclasses.fields(Settings)} <= set(config.sample)


@pytest.mark.parametrize("stage", own_objects.STAGES)
def test_own_objects_on_one_gpu(stage):
    config = own_objects.get_config(stage)
    recipe = config_lib.recipe(config)
    assert config_lib.network(config).image_size == config.model.image_size == (128 if "128" in stage else 64)
    assert (recipe.grad_clip, recipe.schedule, recipe.relative_poses) == (1.0, "cosine", True)
    assert float(recipe.learning_rate_at(config.train.num_steps - 1)) == 0
    assert config_lib.sampler(config).settings.solver == "dpm_solver_2m_sde"
    with pytest.raises(UserError, match="own_objects has configs for 24gb, 80gb, "):
        own_objects.get_config("48gb")


def test_paths_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = base.get_config()
    # Strings that are free, but for names of splits.
    empty = [f"{s}.{f}" for s in config if hasattr(config[s], "items") for f, value in config[s].items() if value == ""]
    free = {*empty, "data.dir"} - {
        "data.train_split",
        "data.val_split",
        "data.test_split",
        "mesh.preset",
        "data.axes",
        "data.up",
    }
    assert free == set(config_lib.PATHS)
    with config.unlocked():
        for name in free:
            config.update_from_flattened_dict({name: f"~/{name}"})
    config.lock()
    config_lib.expand_paths(config)
    for section, field in (name.split(".") for name in free):
        assert config[section][field] == f"/home/me/{section}.{field}"


def test_presets():
    config = base.get_config()
    config.sample.preset = "fast"
    for weight in (0.0, 2.0, 3.0):
        config.sample.guidance_weight = weight
        assert config_lib.sampler_settings(config).evaluations(Process()) <= 50
    config.sample.num_steps, config.sample.guidance_interval = 7, (-2.0, 5.0)
    settings = config_lib.sampler_settings(config)
    assert (settings.num_steps, settings.guidance_interval) == (7, (-2.0, 5.0))
    assert settings.solver == config_lib.PRESETS["fast"]["solver"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model.network", "unet", "config.model.network must be one of xunet, concat_unet, got 'unet'"),
        ("model.dtype", "float16", "config.model.dtype must be one of float32, bfloat16"),
        ("model.image_size", 100, "config.model: image_size 100 is not divisible by 8"),
        ("model.attn_resolutions", (7,), "config.model: the frames never meet"),
        ("data.pose", "both", "config.data.pose must be one of absolute, relative"),
        ("mesh.preset", "tpu", "config.mesh.preset must be one of cpu, "),
        ("mesh.fsdp", 3, "config.mesh: "),
        ("diffusion.prediction", "w", "config.diffusion: prediction must be"),
        ("diffusion.regression", True, "config.diffusion: regression needs"),
        ("data.augment.hue", 0.6, "config.data.augment: hue must be"),
        ("train.uncond_prob", 1.0, "config.train: uncond_prob must be in [0, 1), got 1.0"),
        ("train.adam_b1", 1.5, "config.train: adam_b1 must be in [0, 1), got 1.5"),
        ("train.microbatches", 3, "config.train: batch_size 128 does not divide into 3 microbatches"),
        ("sample.preset", "best", "config.sample.preset must be one of paper, fast, draft, got 'best'"),
        ("sample.num_steps", 0, "config.sample: num_steps must be at least 1"),
    ],
)
def test_wrong_values_name_their_field(field, value, said):
    config = base.get_config()
    config.update_from_flattened_dict({field: value})
    make = {"train": config_lib.recipe, "mesh": config_lib.mesh}.get(field.split(".")[0], config_lib.sampler)
    with pytest.raises(UserError, match=re.escape(said)):
        config_lib.recipe(config) if "augment" in field else make(config)


def test_a_regression_has_no_unconditional_pairs():
    config = base.get_config()
    config.diffusion.prediction, config.diffusion.regression = "x", True
    with pytest.raises(UserError, match=r"uncond_prob must be 0 with diffusion\.regression"):
        config_lib.recipe(config)


def test_differences():
    before = {"a": {"b": 1, "c": [1, 2]}, "ab": 0, "d": None}
    after = {"a": {"b": 1.0, "c": [1, 3], "e": "x"}, "ab": 2}
    lines = ["a.c: [1, 2] → [1, 3]", 'a.e: (absent) → "x"', "ab: 0 → 2", "d: null → (absent)"]
    assert settings_lib.differences(before, after) == lines
    assert settings_lib.differences(before, after, only=("a",)) == lines[:2]
    assert settings_lib.differences(before, after, ignore=("a.c", "d")) == lines[1:3]
    assert settings_lib.differences({"a": 10**120}, {}) == [f"a: {str(10**120)[:80]}… (121 long) → (absent)"]
    settings_lib.refuse("nothing", [], "")
    with pytest.raises(UserError, match=re.escape("settings differ (before → now):\n  ab: 0 → 2\nChange it.")):
        settings_lib.refuse("settings differ", ["ab: 0 → 2"], "Change it.")


def test_configs_are_compared_as_json_reads_them_back():
    config = base.get_config()
    assert settings_lib.plain(config) == json.loads(json.dumps(settings_lib.plain(config)))
    assert settings_lib.plain(config)["model"]["ch_mult"] == [1, 2, 2, 4]
    for bad in (float("nan"), object(), {1, 2}):
        with pytest.raises(UserError, match="cannot be written as JSON"):
            settings_lib.plain({"x": [bad]})


def test_config_file_of_a_run(tmp_path):
    config = shapes64.get_config()
    run_info.write_run_info(tmp_path / "run", config, "abc")
    assert run_info.read_run_info(tmp_path / "run") == (settings_lib.plain(config), "abc")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"], "no temporary file is left"
    assert run_info.check_run_info(tmp_path / "run", config, "abc") == []
    with pytest.raises(MissingError, match=r"config\.json is missing"):
        run_info.read_run_info(tmp_path)
    (tmp_path / "config.json").write_text('{"config": ')
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        run_info.read_run_info(tmp_path)


def test_frozen_settings_of_a_run(tmp_path):
    config = base.get_config()
    run_info.write_run_info(tmp_path, config, "abc")
    config.model.ch, config.diffusion.logsnr_shift, config.data.pose = 64, -1.0, "relative"
    config.data.augment.hue, config.seed, config.train.batch_size, config.train.num_steps = 0.5, 1, 16, 5
    frozen = [
        "data.augment.hue: 0.0 → 0.5",
        'data.pose: "absolute" → "relative"',
        "diffusion.logsnr_shift: 0.0 → -1.0",
        "model.ch: 256 → 64",
        "seed: 0 → 1",
        "train.batch_size: 128 → 16",
        'data fingerprint: "abc" → "def"',
    ]
    with pytest.raises(UserError) as caught:
        run_info.check_run_info(tmp_path, config, "def")
    assert [line.strip() for line in str(caught.value).splitlines()][1:-1] == frozen
    free = ["train.num_steps: 1000000 → 5"]
    assert run_info.check_run_info(tmp_path, config, "def", allow_change=True) == frozen + free


def test_old_configs_without_newer_fields_can_be_read():
    """A file of weights keeps the config of the code that wrote it."""
    config = ml_collections.ConfigDict(settings_lib.plain(base.get_config()))
    del config.train.color_weight
    assert config_lib.recipe(config).color_weight == 1.0


def test_seeds_are_of_32_bits():
    """JAX takes others modulo 2**32."""
    config = base.get_config()
    for seed in (0, 2**32 - 1):
        config.sample.seed = config.data.procedural.seed = seed
        config_lib.check_seeds(config)
    for name, seed in (("sample.seed", 2**32), ("seed", -1), ("data.procedural.seed", 10**20)):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({name: seed})
        with pytest.raises(UserError, match=rf"config\.{name} must be in"):
            config_lib.check_seeds(changed)


def test_examples_are_counted_over_changes_of_the_batch_size(tmp_path):
    config = base.get_config()
    config.train.batch_size = 100
    run_info.write_run_info(tmp_path, config, "abc")
    assert run_info.resized_at(tmp_path, 0, 100) == run_info.resized_at(tmp_path, 10, 100) == (0, 0)
    assert run_info.resized_at(tmp_path, 10, 20) == (10, 1000)
    config.train.batch_size = 20
    run_info.write_run_info(tmp_path, config, "abc", step=10)
    assert run_info.resized_at(tmp_path, 30, 20) == (10, 1000)
    assert run_info.resized_at(tmp_path, 30, 100) == (30, 1400)
    assert run_info.resized_at(tmp_path, 5, 20) == (5, 500), "later checkpoints were moved away"
    recipe = dataclasses.replace(
        config_lib.recipe(config), warmup_examples=2000, learning_rate=1.0, resized_at=(10, 1000)
    )
    np.testing.assert_allclose(recipe.learning_rate_at(jnp.asarray([9, 10, 19])), [0.5, 0.51, 0.6], rtol=1e-6)


def test_settings_of_jax_are_compared(tmp_path):
    config = base.get_config()
    run_info.write_run_info(tmp_path, config, "abc")
    with jax.default_matmul_precision("highest"):
        changes = run_info.check_run_info(tmp_path, config, "abc")
    assert changes == ['jax.default_matmul_precision: null → "highest"']


def test_the_settings_of_trained_weights():
    config = trained.get_config("shapes64")
    assert (config.sample.weights, config.model.ch, config.sample.object) == ("shapes64", 16, "")
    assert config_lib.network(config) == config_lib.network(shapes64.get_config())
    assert config_lib.sampler_settings(config) == config_lib.sampler_settings(shapes64.get_config())
    assert config.train == base.get_config().train


def test_the_settings_of_a_run(run):
    config = trained.get_config(str(run))
    assert (config.sample.weights, config.model.image_size, config.sample.out) == ("", 8, "")
