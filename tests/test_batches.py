import json

import jax.numpy as jnp
import numpy as np
import pytest
from commands import run_python

from threedim.evaluation.metrics.batches import Batched

PROGRAM = """
import json, jax, numpy as np
from threedim.evaluation.metrics.batches import Batched
found = Batched(lambda scale, x, y: (scale * x - y).sum((1, 2, 3)), 2.0, 1)
x = np.arange(5.0).reshape(5, 1, 1, 1)
print(json.dumps([jax.device_count(), found(x, 2 * x).tolist(), found(x, x[:1] + 1).tolist()]))
"""


def test_chunks_have_one_size_and_padding_is_dropped():
    shapes = []

    def double(scale, x, y):
        shapes.append((x.shape[0], y.shape[0]))
        return [scale * x[:, 0, 0, 0], (x + y)[:, 0, 0]]

    x = np.arange(10.0, dtype=np.float32).reshape(5, 1, 1, 2)
    first, second = Batched(double, jnp.float32(3), 2)(x, x[4:] + 1)
    assert shapes == [(2, 1)] * 3
    np.testing.assert_array_equal(first, 3 * x[:, 0, 0, 0])
    np.testing.assert_array_equal(second, (x + x[4:] + 1)[:, 0, 0])
    first, second = Batched(double, jnp.float32(3), 2)(x[:0], x[:0])
    assert (first.shape, second.shape) == ((0,), (0, 2))
    Batched(double, jnp.float32(3), 2)(x[:1], x[:1])
    assert shapes[3:] == [(2, 2)] * 2
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        Batched(double, None, 0)


@pytest.mark.slow
def test_several_devices():
    """In a process of its own, since the number of devices is fixed when JAX starts."""
    done = run_python("-c", PROGRAM, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert json.loads(done.stdout) == [2, [0] * 5, [-1, 1, 3, 5, 7]]
