"""Worker processes of which some are killed."""

import os
import signal

import pytest

from threedim.rendering import pool


def square(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 7:
        raise ValueError("seven")
    return number**2


def test_a_killed_process_costs_one_item():
    assert dict(pool.run(square, [1, 2, 3, 4], 2)) == {1: 1, 2: None, 3: 9, 4: 16}


def test_exceptions_are_raised():
    with pytest.raises(ValueError, match="seven"):
        list(pool.run(square, [7, 1], 1))
