import functools
import logging
import os
import pathlib
import shutil
import sys
import threading
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import run_python
from etils import epath
from orbax.checkpoint._src.path import atomicity

from threedim.errors import UserError
from threedim.training import checkpoints
from threedim.training.checkpoints import CheckpointError, Checkpoints
from threedim.training.orbax_log import quiet_orbax
from threedim.training.step import TrainState


def make_state(step: int, seed: int = 0) -> TrainState:
    rng = np.random.default_rng(seed + step)
    params = {
        "down_0": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 40, 24)), jnp.float32), "bias": jnp.zeros(24)},
        "head": {"scale": jnp.asarray(rng.normal(size=(7,)), jnp.bfloat16)},
    }
    ema = jax.tree.map(lambda x: x * 0.5, params)
    return TrainState(jnp.asarray(step, jnp.int32), params, ema, optax.adam(1e-3).init(params))


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """A run with checkpoints of steps 1, 2 and 3; copy it before changing it."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir, keep_last=5) as saved:
        for step in (1, 2, 3):
            assert saved.save(step, make_state(step))
    return workdir


@pytest.fixture
def run_copy(saved_run, tmp_path):
    return pathlib.Path(shutil.copytree(saved_run, tmp_path / "copy"))


def test_restores_bit_for_bit_in_the_same_structure(saved_run):
    with Checkpoints(saved_run, keep_last=5) as saved:
        assert checkpoints._finished_steps(saved._folder) == [1, 2, 3]
        assert saved.latest_step() == checkpoints.find_step(saved_run) == 3
        assert_same(saved.restore(abstract(make_state(0))), make_state(3))
        assert_same(saved.restore(abstract(make_state(0)), step=1), make_state(1))


def test_missing_checkpoints(saved_run, tmp_path):
    with Checkpoints(tmp_path / "new", keep_last=1) as saved:
        assert saved.latest_step() is None
        with pytest.raises(FileNotFoundError, match="no checkpoint in"):
            saved.restore(abstract(make_state(0)))
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoints.find_step(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    with pytest.raises(FileNotFoundError, match=r"step 7 .* there are 1, 2, 3"):
        checkpoints.restore_params(saved_run, abstract(make_state(0).ema_params), step=7)


def test_donation_during_the_background_save_changes_nothing(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def bump(state):
        return jax.tree.map(lambda x: x + 1, state)

    state = {f"w{i}": jnp.zeros((1_000_000,), jnp.float32) for i in range(4)}
    with Checkpoints(tmp_path, keep_last=10) as saved:
        for step in range(1, 4):
            saved.save(step, state)
            for _ in range(10):
                state = bump(state)
            jax.block_until_ready(state)
        saved.wait()
        for step in range(1, 4):
            restored = saved.restore(abstract(state), step=step)
            for name, leaf in restored.items():
                np.testing.assert_array_equal(leaf, 10.0 * (step - 1), err_msg=f"{name} of step {step}")


def test_keeps_the_last_and_the_first_save_after_every_nth_step(tmp_path):
    with Checkpoints(tmp_path, keep_last=1, keep_every=5) as saved:
        for step in (3, 6, 9, 12, 14, 15, 18, 21, 22):
            saved.save(step, {"w": jnp.ones(3)})
        saved.wait()
        assert checkpoints._finished_steps(saved._folder) == [6, 12, 15, 21, 22]


def test_a_step_is_saved_once_and_never_before_a_later_one(tmp_path):
    state = make_state(1)
    with Checkpoints(tmp_path, keep_last=9) as saved:
        assert saved.save(10, state)
        assert not saved.save(10, state), "saved already, and still being written"
        assert saved.save(13, state)
        saved.wait()
        assert not saved.save(13, state)
        assert checkpoints._finished_steps(saved._folder) == [10, 13]
        with pytest.raises(CheckpointError, match=r"later steps \[13\]"):
            saved.save(12, state)
    with Checkpoints(tmp_path, keep_last=9) as saved:
        assert not saved.save(13, state), "saved by an earlier process"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": {"scale": jnp.zeros(7)}}, r"params/head/scale: bfloat16\[7\] found, float32\[7\] expected"),
        ({"new": jnp.zeros(2)}, r"params/new: none found, float32\[2\] expected"),
        ({"down_0": {}}, r"params/down_0/kernel: float32\[3, 3, 40, 24\] found, none expected"),
    ],
)
def test_another_tree_is_refused_with_the_names(saved_run, change, message):
    state = make_state(0)
    with Checkpoints(saved_run, keep_last=5) as saved, pytest.raises(CheckpointError, match=message) as caught:
        saved.restore(abstract(state.replace(params=state.params | change)))
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"x": 3.0}, "x is a float"),
        ({"x": np.zeros(2)}, "x is float64, which JAX holds as float32"),
        ({"x": jax.random.key(0)}, "use jax.random.key_data"),
        ({"a/b": jnp.zeros(2)}, "distinct names"),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path, tree, message):
    with Checkpoints(tmp_path, keep_last=1) as saved, pytest.raises(ValueError, match=message):
        saved.save(1, {"a": {"c": jnp.zeros(2)}} | tree)
    assert not any((tmp_path / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize("wrong", [{"keep_last": 0}, {"keep_every": -1}])
def test_numbers_are_checked(tmp_path, wrong):
    with pytest.raises(ValueError, match="must be at least"):
        Checkpoints(tmp_path, **({"keep_last": 1} | wrong))


def largest_file(folder):
    """Of those that hold arrays."""
    return max((path for path in folder.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate_largest(folder):
    path = largest_file(folder)
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(folder):
    content = bytearray((path := largest_file(folder)).read_bytes())
    content[len(content) // 3] ^= 0x10  # amid one array: no frame or index begins there
    path.write_bytes(bytes(content))


def change_leaves(folder):
    (path,) = [p for p in (folder / "leaves").iterdir() if b"float32" in p.read_bytes()]
    path.write_bytes(path.read_bytes().replace(b"40", b"41"))


def remove_leaves(folder):
    shutil.rmtree(folder / "leaves")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("damage", [truncate_largest, flip_a_bit, remove_leaves, change_leaves, empty])
def test_damage_names_the_folder_and_the_last_good_one(run_copy, damage):
    folder = run_copy / "checkpoints"
    damage(folder / "3")
    with Checkpoints(run_copy, keep_last=5) as saved:
        with pytest.raises(CheckpointError) as caught:
            saved.restore(abstract(make_state(0)))
        message = str(caught.value)
        assert f"the checkpoint of step 3 is damaged: {folder / '3'}" in message
        assert f"last good checkpoint before it is that of step 2: {folder / '2'}" in message
        assert f"delete or move away {folder / '3'} and start again" in message
    shutil.rmtree(folder / "3")
    with Checkpoints(run_copy, keep_last=5) as saved:
        assert_same(saved.restore(abstract(make_state(0))), make_state(2))
        assert saved.save(3, make_state(3))


def test_damage_of_several_and_of_all(run_copy):
    folder = run_copy / "checkpoints"
    truncate_largest(folder / "3")
    flip_a_bit(folder / "2")
    with Checkpoints(run_copy, keep_last=5) as saved:
        with pytest.raises(CheckpointError, match="that of step 1: ") as caught:
            saved.restore(abstract(make_state(0)))
        assert f"delete or move away {folder / '3'}, {folder / '2'} and start again" in str(caught.value)
        (folder / "1/state/manifest.ocdbt").unlink()
        with pytest.raises(CheckpointError, match="no good checkpoint before it"):
            saved.restore(abstract(make_state(0)))


def test_every_file_of_a_checkpoint_is_needed_or_unused(run_copy, tmp_path):
    """Whichever file is cut or gone: an error, or the right numbers; never wrong numbers, never a fresh start."""
    step_folder = run_copy / "checkpoints" / "3"
    shutil.rmtree(run_copy / "checkpoints" / "1")
    shutil.rmtree(run_copy / "checkpoints" / "2")
    whole, errors = shutil.copytree(step_folder, tmp_path / "whole"), 0
    for path in sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file()):
        for content in (None, b"", (whole / path).read_bytes()[:-3]):
            (step_folder / path).unlink()
            if content is not None:
                (step_folder / path).write_bytes(content)
            try:
                with Checkpoints(run_copy, keep_last=5) as saved:
                    restored = saved.restore(abstract(make_state(0)))
            except CheckpointError:
                errors += 1
            else:
                assert_same(restored, make_state(3))
            shutil.copyfile(whole / path, step_folder / path)
    assert errors >= 6


def test_an_unfinished_save_is_invisible_and_removed(run_copy):
    # What a kill in the middle of a save leaves behind.
    leftover = run_copy / "checkpoints/4.orbax-checkpoint-tmp"
    shutil.copytree(run_copy / "checkpoints/3", leftover)
    truncate_largest(leftover)
    (run_copy / "checkpoints/notes").mkdir()
    assert checkpoints.find_step(run_copy) == 3
    with Checkpoints(run_copy, keep_last=5) as saved:
        assert saved.latest_step() == 3
        assert_same(saved.restore(abstract(make_state(0))), make_state(3))
        assert saved.save(4, make_state(4))
        saved.wait()
        assert_same(saved.restore(abstract(make_state(0))), make_state(4))
    assert not leftover.exists()


def test_a_failed_save_is_an_error(tmp_path, monkeypatch):
    disk_full = mock.AsyncMock(side_effect=OSError(28, "No space left on device"))
    with Checkpoints(tmp_path, keep_last=1) as saved:
        saved.save(1, make_state(1))
        saved.wait()
        with monkeypatch.context() as patch:
            patch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", disk_full)
            saved.save(2, make_state(2))
            said = r"no space left on device while saving a checkpoint to .*; the last checkpoint is that of step 1\."
            with pytest.raises(CheckpointError, match=said):
                saved.wait()
        assert checkpoints._finished_steps(saved._folder) == [1], "the last whole one is not removed"
        assert saved.save(2, make_state(2))
    assert checkpoints.find_step(tmp_path) == 2


SHARDED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from threedim.training.checkpoints import Checkpoints, restore_params

assert jax.device_count() == 4
mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
w = np.arange(64 * 8, dtype=np.float32).reshape(64, 8)
state = {"ema_params": {"w": put(w, "fsdp")}, "step": put(np.int32(5))}
with Checkpoints(sys.argv[1], keep_last=1) as saved:
    saved.save(5, state)
    for spec in (P(), P(("data", "fsdp")), P(None, "data")):
        other = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P())), state)
        other["ema_params"]["w"] = jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=NamedSharding(mesh, spec))
        restored = saved.restore(other)
        assert restored["ema_params"]["w"].sharding.spec == spec
        np.testing.assert_array_equal(restored["ema_params"]["w"], w)
wanted = {"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=NamedSharding(mesh, P()))}
params = restore_params(sys.argv[1], wanted)
assert len(params["w"].devices()) == 4
print("ok")
"""


def test_sharded_save_restores_to_any_sharding(tmp_path):
    result = run_python("-W", "error", "-c", SHARDED, tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert result.stdout == "ok\n", result.stderr
    params = checkpoints.restore_params(tmp_path, {"w": jax.ShapeDtypeStruct((64, 8), jnp.float32)})
    np.testing.assert_array_equal(params["w"], np.arange(512, dtype=np.float32).reshape(64, 8))


def test_the_console_stays_quiet(tmp_path):
    code = (
        "import sys, jax.numpy as jnp\nfrom absl import logging\nlogging.use_absl_handler()\n"
        "from threedim.training.checkpoints import Checkpoints\n"
        "x = {'w': jnp.ones(10)}\nlogging.set_verbosity(logging.INFO)\n"
        "with Checkpoints(sys.argv[1], keep_last=1) as run:\n    run.save(1, x); run.save(2, x); run.restore(x)\n"
        "logging.info('our own line')\n"
    )
    result = run_python("-W", "error", "-c", code, tmp_path)
    assert result.returncode == 0, result.stderr
    (line,) = [x for x in result.stderr.splitlines() if "xla_bridge" not in x and "flag parsing" not in x]
    assert line.endswith("our own line")


def test_ema_params_without_the_rest(saved_run, monkeypatch):
    expected, read, original = make_state(3).ema_params, [], checkpoints._read_arrays
    assert_same(checkpoints.restore_params(saved_run, abstract(expected), step=2), make_state(2).ema_params)
    monkeypatch.setattr(checkpoints, "_read_arrays", lambda *args: read.extend(args[1]) or original(*args))
    assert_same(checkpoints.restore_params(saved_run, abstract(expected)), expected)
    assert sorted(read) == ["ema_params/down_0/bias", "ema_params/down_0/kernel", "ema_params/head/scale"]


def test_what_need_not_be_damaged_is_not_called_so(run_copy, monkeypatch):
    """Nor is it advised to delete it."""
    step, state = run_copy / "checkpoints/3", {"ema_params": abstract(make_state(0)).ema_params}
    denied = PermissionError(13, "Permission denied", str(step))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_read_table", mock.Mock(side_effect=denied))
        with pytest.raises(CheckpointError, match=r"cannot be read, but need not be damaged: .*Permission denied"):
            checkpoints._restore(epath.Path(run_copy / "checkpoints"), 3, state, only="ema_params/")

    def removed(*args):
        shutil.rmtree(step)
        raise OSError("gone")

    monkeypatch.setattr(checkpoints, "_read_arrays", removed)
    with pytest.raises(FileNotFoundError, match=r"checkpoints/3 was removed while it was read"):
        checkpoints._restore(epath.Path(run_copy / "checkpoints"), 3, state, only="ema_params/")


def test_exceptions_that_are_raised_are_not_logged_as_well(caplog):
    quiet_orbax()
    orbax = logging.LogRecord(
        "absl", logging.ERROR, "/x/orbax/future.py", 1, "raised", None, (ValueError, ValueError(), None)
    )
    asyncio = logging.LogRecord(
        "asyncio", logging.ERROR, "events.py", 1, "Task exception was never retrieved", None, None
    )
    for record in (orbax, asyncio):
        logging.getLogger(record.name).handle(record)
    logging.getLogger("absl").handle(logging.LogRecord("absl", logging.ERROR, "/x/orbax/a.py", 1, "kept", None, None))
    assert caplog.messages == ["kept"]


def test_strange_names_beside_checkpoints(run_copy):
    folder = run_copy / "checkpoints"
    (folder / "²").mkdir()
    (folder / "notes").write_text("")
    with Checkpoints(run_copy, keep_last=5) as saved:
        assert saved.latest_step() == 3
    shutil.copytree(folder / "2", folder / "30")
    with pytest.raises(CheckpointError, match=r"step 30 is damaged.* it is a copy of the checkpoint of step 2"):
        checkpoints.restore_params(run_copy, abstract(make_state(0).ema_params))
    shutil.rmtree(folder / "30")
    shutil.rmtree(folder / "3")
    (folder / "3").write_text("")
    with pytest.raises(CheckpointError, match="checkpoints/3 is not the folder of a checkpoint; move it away"):
        checkpoints.find_step(run_copy)


def test_what_is_damaged_and_not_used_is_not_reported(run_copy, caplog):
    for content in (b"\xff", b"", b'{"unknown": 1}'):
        (run_copy / "checkpoints/1/_CHECKPOINT_METADATA").write_bytes(content)
        with Checkpoints(run_copy, keep_last=3) as saved:
            assert saved.latest_step() is not None
    assert not caplog.records


def test_what_tensorstore_reports_too_late_is_dropped(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: shown.append(str(unraisable.exc_value)))
    quiet_orbax()
    quiet_orbax()
    for message in ("Event loop is closed", "another"):
        unraisable = types.SimpleNamespace(exc_value=RuntimeError(message))
        thread = threading.Thread(target=sys.unraisablehook, args=(unraisable,))
        thread.start()
        thread.join()
    assert shown == ["another"]


def test_a_pipe_that_orbax_would_wait_for_is_named(run_copy):
    (run_copy / "checkpoints/1/_CHECKPOINT_METADATA").unlink()
    os.mkfifo(run_copy / "checkpoints/1/_CHECKPOINT_METADATA")
    with pytest.raises(UserError, match="_CHECKPOINT_METADATA is a pipe"):
        Checkpoints(run_copy, keep_last=3)
