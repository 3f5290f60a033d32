"""Sharding on eight CPU devices, in a process of their own (see sharded.py)."""

import json

import numpy as np
import pytest
from commands import run_python


def on_eight_devices(what):
    done = run_python("tests/sharded.py", what, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def eight():
    return on_eight_devices("layout")


def test_meshes_cover_the_devices(eight):
    assert eight["devices"] == 8
    made = {name: (mesh["data"], mesh["fsdp"]) for name, mesh in eight["meshes"].items()}
    assert made == {"-1x1": (8, 1), "8x1": (8, 1), "-1x4": (2, 4), "2x4": (2, 4), "1x8": (1, 8)}
    assert eight["errors"].keys() == {"3x2", "4x4", "-1x3", "-1x0", "0x8", "-2x4", "-1x16"}
    for name, error in eight["errors"].items():
        data, fsdp = name.split("x")
        assert error.startswith(f"data={data}, fsdp={fsdp} does not cover 8 cpu device(s)")


def test_large_arrays_are_split_along_their_longest_axis_that_divides(eight):
    assert eight["splits"] == {
        "kernel": ["(None, None, None, 'fsdp')", [3, 3, 256, 128]],
        "tall": ["('fsdp',)", [256, 64]],
        "odd_last": ["('fsdp',)", [1024, 17]],
        "odd": ["()", [65_537, 3]],
        "large_enough": ["('fsdp',)", [64, 256]],
        "small": ["()", [252, 260]],
        "scalar": ["()", []],
    }
    assert {spec for spec, _ in eight["splits_of_one"].values()} == {"()"}


def test_a_batch_is_split_over_all_devices_in_order(eight):
    assert eight["batch"] == {"a": list(range(16)), "b": list(range(32))}
    assert eight["shards"]["a"] == [[2 * device, 2 * device + 1] for device in range(8)]
    assert eight["shards"]["b"] == [list(range(4 * device, 4 * device + 4)) for device in range(8)]
    assert eight["replicated"] == [16, 2]


def check_steps(steps, share_off=0.0):
    one = steps["0x0 in 1"]
    assert one["moved"] > 1e-6
    assert abs(one["losses"][0] - one["losses"][1]) > 1e-4
    assert len(one["losses"]) == 5
    for name, other in steps.items():
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(other["grad_norm"], one["grad_norm"], rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(other["ema"], one["ema"], rtol=1e-5, err_msg=name)
        # What is added to all keys alike moves no attention: Adam makes steps of its gradient's rounding. So it does,
        # here and there, of a gradient that happens to be nearly zero: one number of a thousand may be off.
        off = {path: value for path, value in other["off"].items() if "['key']['bias']" not in path}
        for path, (share, largest) in off.items():
            assert share <= share_off, (name, path)
            assert largest < 1e-4, (name, path)
        assert len(off) > len(other["off"]) / 2
    # Parameters, their average and Adam's two moments: split over "fsdp" and nowhere else.
    for name in steps.keys() - {"0x0 in 1", "0x0 in 4"}:
        split, large = steps[name]["split"]
        assert split == (0 if name == "8x1 in 1" else large)
        assert large >= 4


def test_training_steps_are_the_same_on_every_mesh(eight):
    check_steps(eight["steps"])


@pytest.mark.slow
def test_training_steps_of_the_network_are_the_same_on_every_mesh():
    check_steps(on_eight_devices("network"), share_off=1e-3)
