import fcntl
import os
import pathlib
import shutil

# No accelerator, so that the numbers are the same everywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# The compiler's optimizer takes far longer than everything that the tests compute; subprocesses inherit this.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest
from launch_machine import Machine
from synthetic import make_objects

from threedim.configs import base
from threedim.training import loop


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory):
    """A temporary folder of this test run, the same in every pytest-xdist worker."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(shared_tmp):
    """Workers and subprocesses compile each program once."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(shared_tmp / "xla")
    jax.config.update("jax_compilation_cache_dir", str(shared_tmp / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def make_config(objects, data):
    """Four objects of 8 px, a network that compiles in seconds, four training steps."""
    c = base.get_config()
    c.data.dir, c.data.source, c.data.num_test_objects = str(data), str(objects), 2
    m = c.model
    m.image_size, m.ch, m.ch_mult, m.emb_ch, m.num_res_blocks = 8, 32, (1,), 8, 0
    m.attn_resolutions, m.attn_heads, m.dtype = (8,), 2, "float32"
    t = c.train
    t.batch_size, t.num_steps, t.num_workers, t.warmup_examples = 4, 4, 0, 40
    t.log_every, t.checkpoint_every, t.eval_every, t.sample_every, t.sample_steps = 1, 2, 0, 0, 2
    s = c.sample
    s.num_steps, s.num_objects, s.batch_size = 3, 2, 2
    return c


def make_once(folder, make):
    """Calls ``make`` with a folder that becomes ``folder``, in one of the workers."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make(folder.with_suffix(".part"))
            folder.with_suffix(".part").rename(folder)
    return folder


@pytest.fixture(scope="session")
def objects(shared_tmp):
    """A folder of four small objects in SRN format, the same for all workers."""
    return make_once(shared_tmp / "objects", lambda folder: make_objects(folder, count=4, views=5, size=8))


@pytest.fixture
def tiny_config(objects, tmp_path):
    """A configuration of `make_config`, with data in a folder of the test."""
    return make_config(objects, tmp_path / "data")


@pytest.fixture(scope="session")
def trained_run(objects, shared_tmp):
    """A run of `make_config` after two steps, trained once for all workers. Copy it before changing it."""

    def train(workdir):
        config = make_config(objects, shared_tmp / "trained_data")
        config.train.num_steps = 2
        loop.train(config, workdir)

    return make_once(shared_tmp / "trained", train)


@pytest.fixture
def machine(tmp_path, tmp_path_factory):
    """For the tests of the launch scripts."""
    machine = Machine(tmp_path, tmp_path_factory.getbasetemp())
    yield machine
    machine.close()


@pytest.fixture
def run(trained_run, tmp_path):
    return pathlib.Path(shutil.copytree(trained_run, tmp_path / "run"))
