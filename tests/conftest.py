import os

# No accelerator, so that the numbers are the same everywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# The compiler's optimizer takes far longer than all that the tests compute; the processes that they start inherit this.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest
from synthetic import make_objects

from configs import base


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Programs that several tests compile are compiled once."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))


@pytest.fixture(scope="session")
def objects(tmp_path_factory):
    """A folder of four small objects in SRN format."""
    folder = tmp_path_factory.mktemp("objects")
    make_objects(folder, count=4, views=5, size=8)
    return folder


@pytest.fixture
def tiny_config(objects, tmp_path):
    """The smallest configuration that has every part, on those objects."""
    c = base.get_config()
    c.data.dir, c.data.source, c.data.num_test_objects = str(tmp_path / "data"), str(objects), 2
    m = c.model
    m.image_size, m.ch, m.ch_mult, m.emb_ch, m.num_res_blocks = 8, 32, (1, 2), 16, 1
    m.attn_resolutions, m.attn_heads, m.dtype = (4,), 2, "float32"
    t = c.train
    t.batch_size, t.num_steps, t.num_workers, t.warmup_examples = 4, 4, 0, 40
    t.log_every, t.checkpoint_every, t.sample_every, t.sample_steps = 1, 2, 0, 2
    s = c.sample
    s.num_steps, s.num_objects, s.batch_size = 3, 2, 2
    return c
