"""Short forms of the campaigns of docs/reliability.md."""

import pytest
from commands import run_python


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [("kills", "--kills=20"), ("mutations", "--mutations=300", "--command_lines=20")],
    ids=lambda each: each[0],
)
def test_short_form(tmp_path, program):
    name, *sizes = program
    done = run_python("-m", f"tests.campaign.{name}", *sizes, "--seed=0", f"--out={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
