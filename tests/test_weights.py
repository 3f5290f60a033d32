import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_collections
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from tiny import random_params

import threedim
from threedim import config as config_lib
from threedim import sample as sample_lib
from threedim import weights
from threedim.data import srn
from threedim.evaluation import protocol
from threedim.training import checkpoints, leaves, loop, run_info
from threedim.training.step import abstract_params
from threedim.weights import WeightsError, load_weights, read_info, save_weights

BFLOAT16 = ml_dtypes.bfloat16


@pytest.fixture
def trained(tiny_config):
    """A config and parameters of its network, none of them zero."""
    return tiny_config, random_params(config_lib.network(tiny_config))


@pytest.fixture
def file(trained, tmp_path):
    path = tmp_path / "small.safetensors"
    save_weights(path, trained[1], trained[0], training_steps=7, card={"data": "none"}, dtype="float32")
    return path


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def run(tiny_config, kept, tmp_path):
    """A run that has done one step, in a folder of its own."""
    if not (kept / "run").exists():
        tiny_config.train.num_steps = 1
        loop.train(tiny_config, kept / "run")
    return pathlib.Path(shutil.copytree(kept / "run", tmp_path / "run"))


def rewrite(path, change):
    """Changes arrays and metadata of a file and makes the checksums fit again."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["threedim"])
    arrays = {name: array.copy() for name, array in safetensors.numpy.load(data).items()}
    change(arrays, metadata)
    metadata["checksums"] = leaves.checksums({name: a for name, a in arrays.items() if a.dtype.itemsize <= 4})
    path.write_bytes(safetensors.numpy.save(arrays, metadata={"threedim": json.dumps(metadata)}))


def rounded(params, dtype):
    """By NumPy, to nearest even."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype).astype(np.float32), params)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --- there and back ---


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [("bfloat16", BFLOAT16), ("float32", np.float32)])
def test_round_trip(trained, tmp_path, dtype, numpy_dtype):
    config, params = trained
    path = tmp_path / "new folder" / "a.safetensors"
    size = save_weights(path, params, config, training_steps=1300, card={"licence": "?", "psnr": 20.5}, dtype=dtype)
    info, loaded = load_weights(path)
    assert_same(loaded, rounded(params, numpy_dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
    assert json.loads(info.config.to_json()) == json.loads(config.to_json())
    assert config_lib.denoiser(info.config) == config_lib.denoiser(config)
    assert (info.training_steps, info.card) == (1300, {"licence": "?", "psnr": 20.5})
    assert re.fullmatch(r"[0-9a-f]{40}( with changes)?|", info.commit)
    assert read_info(path) == info

    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert size == path.stat().st_size
    assert count * np.dtype(numpy_dtype).itemsize < size < count * np.dtype(numpy_dtype).itemsize + 40_000
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"], "no temporary file stays"


def test_bfloat16_is_rounded_to_nearest_even(trained, tmp_path):
    config, params = trained
    bits = np.array([0x3F808000, 0x3F818000, 0x3F80FFFF, 0x3F807FFF, 0xBF808001], np.uint32)
    paths = {path: leaf for path, leaf in leaves.by_path(params).items() if leaf.shape[-1] >= 5 and leaf.ndim == 1}
    name = sorted(paths)[0]
    changed = {**leaves.by_path(params), name: jnp.asarray(np.resize(bits.view(np.float32), paths[name].shape))}
    save_weights(tmp_path / "a.safetensors", leaves.nest(changed), config, training_steps=1)
    loaded = leaves.by_path(load_weights(tmp_path / "a.safetensors")[1])[name]
    expected = np.array([0x3F800000, 0x3F820000, 0x3F810000, 0x3F800000, 0xBF810000], np.uint32)
    np.testing.assert_array_equal(np.asarray(loaded)[:5].view(np.uint32), expected)


def test_the_same_arguments_give_the_same_bytes(trained, tmp_path):
    for name in "ab":
        card = dict.fromkeys("zyxwv", 1)
        save_weights(tmp_path / f"{name}.safetensors", trained[1], trained[0], training_steps=1, card=card)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_any_reader_of_safetensors_finds_the_names(file, trained):
    found = safetensors.numpy.load_file(file)
    wanted = leaves.by_path(trained[1])
    assert found.keys() == wanted.keys()
    assert any(name.count("/") >= 2 for name in found)
    for name, array in found.items():
        np.testing.assert_array_equal(array, wanted[name])


def test_a_config_read_from_a_run_serves_as_well(trained, tmp_path):
    config = json.loads(trained[0].to_json())
    save_weights(tmp_path / "a.safetensors", trained[1], config, training_steps=1)
    assert json.loads(read_info(tmp_path / "a.safetensors").config.to_json()) == config


def test_parameters_go_where_they_are_wanted(file):
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    _, params = load_weights(file, sharding)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(params))


# --- what is refused ---


def refused(path, *said):
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    for words in (str(path), *said):
        assert words in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 8, 200, 0.5, -1])
def test_a_cut_file_is_damaged(file, keep):
    data = file.read_bytes()
    keep = int(len(data) * keep) if isinstance(keep, float) else keep
    file.write_bytes(data[:keep])
    refused(file, "is damaged")


def test_files_that_are_something_else(file, tmp_path):
    for content in (b"PK\x03\x04" + bytes(100), b"\xff" * 100, (4).to_bytes(8, "little") + b"[{}]"):
        file.write_bytes(content)
        refused(file, "is damaged")
    file.write_bytes(safetensors.numpy.save({"x": np.zeros(3)}))
    refused(file, "holds no weights of this project")
    file.write_bytes(safetensors.numpy.save({"x": np.zeros(3)}, metadata={"threedim": "{"}))
    refused(file, "is damaged", "header cannot be read")
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such file"):
        load_weights(tmp_path / "none.safetensors")


def one_of(arrays):
    return sorted(name for name, array in arrays.items() if array.ndim == 4)[3]


def _missing(arrays, metadata):
    arrays.pop(one_of(arrays))


def _extra(arrays, metadata):
    arrays["extra/kernel"] = np.zeros((2, 3), np.float32)


def _shape(arrays, metadata):
    arrays[one_of(arrays)] = arrays[one_of(arrays)][..., :-1].copy()


def _not_finite(arrays, metadata):
    arrays[one_of(arrays)][0, 1, 0, 0] = np.nan


def _infinite(arrays, metadata):
    arrays[one_of(arrays)][0, 1, 0, 0] = -np.inf


def _dtype(arrays, metadata):
    arrays[one_of(arrays)] = arrays[one_of(arrays)].astype(np.float64)


def _mixed(arrays, metadata):
    arrays[one_of(arrays)] = arrays[one_of(arrays)].astype(BFLOAT16)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_missing, "missing, should be [3, 3, "),
        (_extra, "extra/kernel: [2, 3], but the network has no such parameter"),
        (_shape, "instead of [3, 3, "),
        (_not_finite, "not finite"),
        (_infinite, "not finite"),
        (_dtype, "F64"),
        (_mixed, "bfloat16 and float32"),
    ],
)
def test_arrays_that_are_not_the_networks(file, change, said):
    name = one_of(safetensors.numpy.load_file(file))
    rewrite(file, change)
    refused(file, said, *([] if change in (_extra, _mixed) else [name]))


def test_one_changed_bit_is_noticed(file):
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    refused(file, "is damaged", "numbers have changed since writing in")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "has version 2 of the format; this code reads version 1"),
        ({"version": "1"}, "no valid version"),
        ({"config": None, "card": []}, "no valid config, card"),
        ({"training_steps": 1.5}, "no valid training_steps"),
        ({"config": {}}, "its config describes no network"),
    ],
)
def test_metadata_that_is_not_ours(file, changes, said):
    rewrite(file, lambda arrays, metadata: metadata.update(changes))
    refused(file, said)
    with pytest.raises(WeightsError, match=re.escape(said)):
        read_info(file)


def test_a_network_of_later_code_is_refused(file):
    rewrite(file, lambda arrays, metadata: metadata["config"]["model"].update(experts=8))
    refused(file, "describes no network that this code knows", "experts")


def test_what_could_not_be_read_is_not_written(trained, tmp_path):
    config, params = trained
    path = tmp_path / "a.safetensors"
    flat = leaves.by_path(params)
    name = one_of(flat)
    bad = {**flat, name: flat[name].at[0, 0, 0, 0].set(jnp.inf)}
    too_large = {**flat, name: flat[name].at[0, 0, 0, 0].set(np.finfo(np.float32).max)}
    fewer = {other: leaf for other, leaf in flat.items() if other != name}
    for tree, said in ((bad, "not finite"), (too_large, "not finite"), (fewer, f"{name}: missing")):
        with pytest.raises(WeightsError, match=re.escape(said)):
            save_weights(path, leaves.nest(tree), config, training_steps=1)
    for arguments, said in (
        ({"dtype": "float16"}, "dtype of weights must be one of bfloat16, float32"),
        ({"card": {"psnr": float("nan")}}, "config or card cannot be written as JSON"),
        ({"card": {"psnr": np.float32(1)}}, "config or card cannot be written as JSON"),
    ):
        with pytest.raises(ValueError, match=said):
            save_weights(path, params, config, training_steps=1, **arguments)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_weights(tmp_path / "a.bin", params, config, training_steps=1)
    assert not path.exists()


def test_an_existing_file_stays_unless_asked(file, trained):
    before = file.read_bytes()
    with pytest.raises(FileExistsError, match="is there already"):
        save_weights(file, trained[1], trained[0], training_steps=8)
    assert file.read_bytes() == before
    save_weights(file, trained[1], trained[0], training_steps=8, overwrite=True)
    assert read_info(file).training_steps == 8


# --- in use ---


def test_a_model_from_a_file_draws_what_its_rounded_parameters_draw(run, objects, tmp_path):
    config = ml_collections.ConfigDict(run_info.read_run_info(run)[0])
    params = random_params(config_lib.network(config))
    save_weights(tmp_path / "a.safetensors", params, config, training_steps=1)
    model, from_run = threedim.load(tmp_path / "a.safetensors"), threedim.load(str(run))
    assert (model.denoiser, model.process, model.settings, model.step) == (
        from_run.denoiser,
        from_run.process,
        from_run.settings,
        1,
    )
    pictures, known = srn.read_object(sorted(objects.iterdir())[0]).decode()
    targets = threedim.orbit([0, 90], 20, 1.3, known.K[0])

    def draw(params):
        changed = threedim.Model(model.denoiser, params, model.process, model.settings, 1)
        return changed.sample(pictures[0], known[0], targets, settings=threedim.Settings(num_steps=3))

    drawn = draw(model.params)
    np.testing.assert_array_equal(drawn, draw(rounded(params, BFLOAT16)))
    assert not np.array_equal(drawn, draw(params)), "rounding is seen"
    with pytest.raises(ValueError, match="weights of one step"):
        threedim.load(tmp_path / "a.safetensors", step=1)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "threedim.weights", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_command_line(run, tmp_path, capsys):
    out, card = tmp_path / "run.safetensors", tmp_path / "card.json"
    card.write_text('{"data": "synthetic"}')
    done = command(f"--workdir={run}", f"--out={out}", f"--card={card}")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"run\.safetensors: [\d,]+ parameters of step 1 in bfloat16, \d+\.\d\d MB\n", done.stdout)
    info, params = load_weights(out)
    assert (info.training_steps, info.card) == (1, {"data": "synthetic"})
    assert json.loads(info.config.to_json()) == run_info.read_run_info(run)[0]
    saved = checkpoints.restore_params(run, abstract_params(config_lib.network(info.config)))
    assert_same(params, rounded(saved, BFLOAT16))

    def fails(said, *arguments):
        with pytest.raises(SystemExit) as caught:
            weights.main([f"--workdir={run}", *arguments])
        assert str(caught.value).startswith("error: ")
        assert said in str(caught.value)

    fails("--overwrite", f"--out={out}")
    fails("no checkpoint of step 5", f"--out={tmp_path / 'b.safetensors'}", "--step=5")
    fails("must end in .safetensors", f"--out={tmp_path / 'b'}")
    fails("no such card", f"--out={tmp_path / 'b.safetensors'}", f"--card={tmp_path / 'none.json'}")
    card.write_text("[]")
    fails("must be a JSON object", f"--out={tmp_path / 'b.safetensors'}", f"--card={card}")
    card.write_text("{")
    fails("not a JSON file", f"--out={tmp_path / 'b.safetensors'}", f"--card={card}")
    fails("config.json is missing", f"--out={tmp_path / 'b.safetensors'}", f"--workdir={tmp_path}")
    assert not (tmp_path / "b.safetensors").exists()
    capsys.readouterr()
    weights.main([f"--workdir={run}", f"--out={out}", "--overwrite", "--dtype=float32", "--step=1"])
    assert "of step 1 in float32" in capsys.readouterr().out
    assert_same(load_weights(out)[1], saved)


def views_of(out):
    return {path.name: srn.read_object(path).decode()[0] for path in (out / "views").iterdir()}


def test_sampling_from_a_file_needs_no_run(tiny_config, run, tmp_path):
    path = tmp_path / "box.safetensors"
    weights.main([f"--workdir={run}", f"--out={path}", "--dtype=float32"])
    tiny_config.sample.num_objects = 1
    from_run = views_of(sample_lib.sample(tiny_config, run))
    shutil.rmtree(run)
    tiny_config.sample.weights = str(path)
    out = sample_lib.sample(tiny_config, tmp_path / "elsewhere")
    assert out == tmp_path / "elsewhere/views/box"
    drawn = views_of(out)
    assert drawn.keys() == from_run.keys()
    for name, pictures in drawn.items():
        np.testing.assert_array_equal(pictures, from_run[name])
    settings = json.loads((out / "samples.json").read_text())["settings"]
    assert (settings["checkpoint_step"], len(settings["weights"])) == (1, 64)

    # The file may move; another one is not mixed with it.
    path = path.rename(tmp_path / "moved.safetensors")
    tiny_config.sample.weights, tiny_config.sample.out = str(path), str(out)
    sample_lib.sample(tiny_config, tmp_path / "elsewhere")
    rewrite(path, lambda arrays, metadata: metadata.update(training_steps=2))
    with pytest.raises(ValueError, match=r"checkpoint_step: 1 → 2\n  weights: [0-9a-f]{64} → [0-9a-f]{64}"):
        sample_lib.sample(tiny_config, tmp_path / "elsewhere")


def test_a_file_must_fit_the_config(tiny_config, file, tmp_path):
    tiny_config.sample.weights = str(file)
    tiny_config.model.ch, tiny_config.data.pose = 64, "relative"
    with pytest.raises(ValueError, match=re.escape(str(file))) as caught:
        sample_lib.sample(tiny_config, tmp_path / "run")
    assert "model.ch: 32 → 64\n  data.pose: absolute → relative" in str(caught.value)
    tiny_config.sample.checkpoint_step = 3
    with pytest.raises(ValueError, match="name one of the two"):
        sample_lib.sample(tiny_config, tmp_path / "run")
    tiny_config.sample.weights, tiny_config.sample.checkpoint_step = str(tmp_path), None
    with pytest.raises(ValueError, match=r"must name a \.safetensors file"):
        sample_lib.sample(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_views_drawn_before_there_were_files_go_on(tiny_config, run):
    tiny_config.sample.num_objects = 1
    path = sample_lib.sample(tiny_config, run) / "samples.json"
    content = json.loads(path.read_text())
    assert content["settings"].pop("weights") == ""
    path.write_text(json.dumps(content))
    sample_lib.sample(tiny_config, run)


def test_evaluation_of_a_file(tiny_config, file, tmp_path):
    tiny_config.sample.weights = str(file)
    tiny_config.evaluate.input_view, tiny_config.evaluate.max_objects = 0, 1
    out = protocol.evaluate(tiny_config, tmp_path / "run")
    assert out == tmp_path / "run/evaluation/small"
    results = json.loads((out / "results.json").read_text())
    assert (results["checkpoint_step"], results["num_objects"]) == (7, 1)
    assert "step 7" in (out / "report.html").read_text()
