"""What processes of one run agree on; tests/test_processes.py runs real ones."""

import types

import numpy as np
import pytest

from threedim import distributed
from threedim.errors import UserError


def test_a_folder_that_not_all_see_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 3)
    seen = [True, True, True]
    fake = types.SimpleNamespace(
        broadcast_one_to_all=lambda number: number,
        sync_global_devices=lambda name: None,
        process_allgather=lambda mine: np.array([mine, *seen[1:]]),
    )
    monkeypatch.setattr(distributed, "multihost_utils", fake)
    distributed.check_shared(tmp_path / "run")
    seen[2] = False
    with pytest.raises(UserError, match=r"process 2 does not see .*run of process 0"):
        distributed.check_shared(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
