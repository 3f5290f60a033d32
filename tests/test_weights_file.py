"""Weights files: there and back, damage, and what is not written. And the export command."""

import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from tiny import random_params

from threedim import arrays as arrays_lib
from threedim import config as config_lib
from threedim import settings as settings_lib
from threedim import weights
from threedim.errors import ExistsError, MissingError, UserError
from threedim.trained import open_run
from threedim.weights_file import WeightsError, load_weights, read_info, save_weights, sealed

BFLOAT16 = ml_dtypes.bfloat16


@pytest.fixture
def trained(tiny_config):
    return tiny_config, random_params(config_lib.network(tiny_config))


@pytest.fixture
def file(trained, tmp_path):
    path = tmp_path / "small.safetensors"
    save_weights(path, trained[1], trained[0], training_steps=7, card={"data": "none"}, dtype="float32")
    return path


def rewrite(path, change, seal=sealed):
    """Changes arrays and metadata of a file and makes the checksums fit again."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["threedim"])
    arrays = {name: array.copy() for name, array in safetensors.numpy.load(data).items()}
    change(arrays, metadata)
    metadata["checksums"] = arrays_lib.checksums({name: a for name, a in arrays.items() if a.dtype.itemsize <= 4})
    path.write_bytes(safetensors.numpy.save(arrays, metadata={"threedim": json.dumps(seal(metadata))}))


def rounded(params, dtype):
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype).astype(np.float32), params)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [("bfloat16", BFLOAT16), ("float32", np.float32)])
def test_round_trip(trained, tmp_path, dtype, numpy_dtype):
    config, params = trained
    path = tmp_path / "new folder" / "a.safetensors"
    size = save_weights(path, params, config, training_steps=1300, card={"license": "?", "psnr": 20.5}, dtype=dtype)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    loaded = load_weights(path, sharding)
    assert_same(loaded, rounded(params, numpy_dtype))
    assert {(leaf.dtype, leaf.sharding) for leaf in jax.tree.leaves(loaded)} == {(np.dtype(np.float32), sharding)}
    info = read_info(path)
    assert settings_lib.plain(info.config) == settings_lib.plain(config)
    assert config_lib.denoiser(info.config) == config_lib.denoiser(config)
    assert (info.training_steps, info.card) == (1300, {"license": "?", "psnr": 20.5})
    assert re.fullmatch(r"[0-9a-f]{40}( with changes)?|", info.commit)
    nbytes = np.dtype(numpy_dtype).itemsize * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert nbytes < size == path.stat().st_size < nbytes + 40_000
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"], "no temporary file is left"


def test_the_same_arguments_give_the_same_bytes_and_plain_names(trained, tmp_path):
    for name in "ab":
        card = dict.fromkeys("zyxwv", 1)
        save_weights(tmp_path / f"{name}.safetensors", trained[1], trained[0], training_steps=1, card=card)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    found = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert found.keys() == arrays_lib.by_path(trained[1]).keys()


def refused(path, *said):
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    for words in (str(path), *said):
        assert words in str(caught.value)


def test_damaged_files(file, tmp_path):
    data = file.read_bytes()
    for keep in (0, 5, 8, 200, len(data) // 2, -1):
        file.write_bytes(data[:keep])
        refused(file, "is damaged")
    for content in (b"PK\x03\x04" + bytes(100), b"\xff" * 100, (4).to_bytes(8, "little") + b"[{}]"):
        file.write_bytes(content)
        refused(file, "is damaged")
    flipped = bytearray(data)
    flipped[-1000] ^= 1
    file.write_bytes(flipped)
    refused(file, "is damaged", "the checksum does not match in")
    file.write_bytes(safetensors.numpy.save({"x": np.zeros(3)}))
    refused(file, "is not a weights file of this project")
    file.write_bytes(safetensors.numpy.save({"x": np.zeros(3)}, metadata={"threedim": "{"}))
    refused(file, "is damaged", "header cannot be read")
    with pytest.raises(MissingError, match=r"none\.safetensors: no such weights file"):
        load_weights(tmp_path / "none.safetensors")


def one_of(arrays):
    return sorted(name for name, array in arrays.items() if array.ndim == 4)[3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda array: {}, "NAME: none found, [3, 3, "),
        (lambda array: {"NAME": array, "extra": np.zeros((2, 3), np.float32)}, "extra: [2, 3] found, none expected"),
        (lambda array: {"NAME": array[..., :-1].copy()}, "] expected"),
        (lambda array: {"NAME": np.where(np.arange(array.shape[-1]) == 1, np.float32(np.nan), array)}, "not finite"),
        (lambda array: {"NAME": array.astype(np.float64)}, "F64"),
        (lambda array: {"NAME": array.astype(BFLOAT16)}, "bfloat16 and float32"),
    ],
)
def test_arrays_that_do_not_fit_the_network(file, change, said):
    name = one_of(safetensors.numpy.load_file(file))

    def replace(arrays, metadata):
        arrays.update({other.replace("NAME", name): array for other, array in change(arrays.pop(name)).items()})

    rewrite(file, replace)
    refused(file, said.replace("NAME", name))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 1}, "has format version 1; this code reads version 2"),
        ({"version": "1"}, "no valid version"),
        ({"config": None, "card": []}, "no valid config, card"),
        ({"training_steps": 1.5}, "no valid training_steps"),
        ({"config": {}}, "its config does not describe a network"),
    ],
)
def test_wrong_metadata(file, changes, said):
    rewrite(file, lambda arrays, metadata: metadata.update(changes))
    refused(file, said)
    with pytest.raises(WeightsError, match=re.escape(said)):
        read_info(file)


def test_every_change_of_the_metadata_is_found(file):
    """Some would load, and change pictures."""

    def set_to(section, field, value):
        return lambda arrays, metadata: metadata["config"][section].update({field: value})

    for change in (set_to("model", "norm_groups", 4), set_to("sample", "guidance_weight", 9.0)):
        rewrite(file, change, seal=lambda metadata: metadata)
        refused(file, "the checksum of its metadata does not match")


def test_a_field_that_is_missing_takes_no_default(file):
    rewrite(file, lambda arrays, metadata: metadata["config"]["model"].pop("norm_groups"))
    refused(file, "its config lacks model.norm_groups")


def test_a_network_far_larger_than_the_file_is_not_traced(file):
    rewrite(file, lambda arrays, metadata: metadata["config"]["model"].update(num_res_blocks=1_000_000))
    refused(file, "its config asks for 1000000 blocks a level")


def test_a_network_of_newer_code_is_refused(file):
    rewrite(file, lambda arrays, metadata: metadata["config"]["model"].update(experts=8))
    refused(file, "does not describe a network", "experts")


def test_what_could_not_be_read_is_not_written(trained, tmp_path):
    config, params = trained
    path, flat = tmp_path / "a.safetensors", arrays_lib.by_path(params)
    name = one_of(flat)
    bad = {**flat, name: flat[name].at[0, 0, 0, 0].set(jnp.inf)}
    too_large = {**flat, name: flat[name].at[0, 0, 0, 0].set(np.finfo(np.float32).max)}
    fewer = {other: leaf for other, leaf in flat.items() if other != name}
    for tree, said in ((bad, "not finite"), (too_large, "not finite"), (fewer, f"{name}: none found")):
        with pytest.raises(WeightsError, match=re.escape(said)):
            save_weights(path, arrays_lib.nest(tree), config, training_steps=1)
    for arguments, said in (
        ({"dtype": "float16"}, "dtype must be one of bfloat16, float32"),
        ({"card": {"psnr": float("nan")}}, "cannot be written as JSON"),
    ):
        with pytest.raises(UserError, match=said):
            save_weights(path, params, config, training_steps=1, **arguments)
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        save_weights(tmp_path / "a.bin", params, config, training_steps=1)
    assert not path.exists()


def test_export(run, tmp_path, capsys):
    out, card = tmp_path / "run.safetensors", tmp_path / "card.json"
    card.write_text('{"data": "synthetic"}')
    weights.main([f"--workdir={run}", f"--out={out}", f"--card={card}"])
    pattern = r".*run\.safetensors: [\d,]+ parameters of step 2 in bfloat16, \d+\.\d\d MB\n"
    assert re.fullmatch(pattern, capsys.readouterr().out)
    info, params = read_info(out), load_weights(out)
    assert (info.training_steps, info.card) == (2, {"data": "synthetic"})
    trained = open_run(run)
    assert settings_lib.plain(info.config) == settings_lib.plain(trained.config)
    assert_same(params, rounded(trained.params(), BFLOAT16))

    def fails(said, *arguments):
        with pytest.raises(SystemExit) as caught:
            weights.main([f"--workdir={run}", *arguments])
        assert str(caught.value).startswith("error: ")
        assert said in str(caught.value)

    other = tmp_path / "b.safetensors"
    fails("--overwrite", f"--out={out}")
    fails("no checkpoint of step 5", f"--out={other}", "--step=5")
    fails("must end in .safetensors", f"--out={tmp_path / 'b'}")
    fails("none.json: no such file", f"--out={other}", f"--card={tmp_path / 'none.json'}")
    fails("no checkpoint in", f"--out={other}", f"--workdir={tmp_path}")
    for content, said in (("[]", "must be a JSON object"), ("{", "not a JSON file")):
        card.write_text(content)
        fails(said, f"--out={other}", f"--card={card}")
    assert not other.exists()
    with pytest.raises(ExistsError):
        save_weights(out, params, info.config, training_steps=2)
    weights.main([f"--workdir={run}", f"--out={out}", "--overwrite", "--dtype=float32", "--step=2"])
    assert_same(load_weights(out), trained.params())
