"""The command line: mistakes are reported in one line, before time is spent."""

import json
import re
from unittest import mock

import jax
import pytest
from commands import run_python

from threedim import main
from threedim.errors import UserError

DEMO = "--config=configs/demo.py"

# One process for all mistakes: importing JAX takes longer than finding any of them.
SEVERAL = """
import contextlib, io, json, sys
from absl import app, flags
from threedim import main
app.define_help_flags()
said = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = argv = ["threedim", *arguments]
    flags.FLAGS.unparse_flags()
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    output = io.StringIO()
    code = None
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main.main(main.parse_flags(argv))
        except (SystemExit, app.UsageError) as error:
            code = str(error)
    said.append([code, output.getvalue()])
print(json.dumps(said))
"""

MISTAKES = [
    ((DEMO, "--mode=foo"), "<prepare|train|sample|evaluate|status>"),
    (("--mode=train", "--workdir=x"), "--config=FILE is missing"),
    (("--mode=status", "--workdir=no/such/run"), "error: no/such/run/config.json is missing: is no/such/run the work"),
    ((DEMO, "--mode=train"), "--mode=train needs --workdir=FOLDER"),
    ((DEMO, "--mode=train", "x"), "unexpected arguments: x"),
    (
        ("--config=configs/nope.py", "--mode=train"),
        "--config=configs/nope.py: no such file, and no packaged config: abl",
    ),
    ((DEMO, "--mode=train", "--config.train.batchsize=3"), "config.train has no field 'batchsize'; its fields are: ad"),
    (
        (DEMO, "--mode", "train", "--config.seeds", "3"),
        "--config.seeds: config has no field 'seeds'; its fields are: d",
    ),
    ((DEMO, "--mode=train", "--config.seed.x=3"), "config.seed has no field 'x'; its fields are: none"),
    (("--config=configs/ablations/regression.py:x", "--mode=train"), "error: --config: "),
    ((DEMO, "--mode=train", "--config.train.batch_size=x"), "--config.train.batch_size=x"),
    ((DEMO, "--mode=train", "--workdir=x", "--config.mesh.cpu_devices=-1"), "error: mesh.cpu_devices must be 0 or"),
    ((DEMO, "--mode=train", "--workdir=x", "--process_id=1"), "error: process 1: --coordinator_address, "),
    ((DEMO, "--mode=sample", "--workdir=no/such/run"), "no/such/run: train first, or name the folder"),
    (("--config=configs/srn_cars.py", "--mode=prepare", "--config.data.source=nowhere"), "cars_train.zip"),
    (("--config", "srn_cars", "--mode=prepare", "--config.data.source=nowhere"), "cars_train.zip"),
    (("--config=own_objects:x", "--mode=train"), "error: --config: own_objects has configs for 24gb, 80gb"),
]


@pytest.fixture(scope="module")
def said():
    done = run_python("-c", SEVERAL, json.dumps([arguments for arguments, _ in MISTAKES]))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("index", range(len(MISTAKES)), ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_mistakes_are_reported_without_a_traceback(said, index):
    code, output = said[index]
    assert code is not None
    assert MISTAKES[index][1] in code + output
    assert "Traceback" not in output


def run_training(train):
    """The command line, with another function in place of `loop.train`."""
    code = f"""
import sys
import jax.numpy as jnp
from threedim import main
from threedim.training import loop
def train(*args, **kwargs):
    {train}
loop.train = train
sys.argv = ["threedim", "{DEMO}", "--mode=train", "--workdir=x"]
main.run()
"""
    return run_python("-c", code)


def test_bugs_keep_their_traceback():
    """A ValueError of somebody's own code is no user error."""
    done = run_training('raise ValueError("a bug")')
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.rstrip().endswith("ValueError: a bug")


def test_a_second_interrupt_names_the_last_checkpoint():
    done = run_training("raise KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "interrupted; there is no checkpoint in x\n")


def test_a_full_disk_is_one_line():
    done = run_training("raise OSError(28, 'No space left', 'x/metrics.jsonl')")
    assert (done.returncode, done.stderr) == (1, "error: x/metrics.jsonl: No space left on device\n")


def test_out_of_memory_is_one_line():
    done = run_training("jnp.zeros(1 << 48).block_until_ready()")
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: the devices' memory does not suffice: .*1125899906842624 bytes.*batch_size: what fits, .*finds out\n",
        done.stderr,
    )


def test_training_imports_nothing_that_only_scores_or_renders():
    """Each second of imports delays every restart."""
    code = """
import sys
import threedim.main
assert "jax" in sys.modules
assert "tensorflow_datasets" not in sys.modules
import threedim.training.loop
heavy = ("scipy", "trimesh", "dm_pix", "embreex", "matplotlib", "threedim.evaluation", "threedim.sample")
print([name for name in heavy if name in sys.modules])
"""
    done = run_python("-c", code)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("module", ["threedim.main", "threedim"])  # the latter as the command threedim
def test_help_is_readable(module):
    done = run_python("-m", module, "--help")
    for word in ("Modes:", "prepare", "sample", "--workdir", "allow_change", "--config.train.batch_size=64"):
        assert word in done.stdout


def test_prepare_prints_what_it_found(objects, tmp_path):
    command = ["-m", "threedim.main", DEMO, "--mode=prepare", "--config.data.holdout_views=0"]
    command += ["--config.data.source=$OBJECTS", "--config.data.dir=~/data"]
    home = {"HOME": str(tmp_path), "OBJECTS": str(objects)}
    done = run_python(*command, **home)
    assert done.returncode == 0, done.stderr
    assert "train: 4 objects, 20 views of 8 px" in done.stdout
    assert "dataset_builder" not in done.stderr
    assert "reusing" in run_python(*command, **home).stdout
    assert (tmp_path / "data/records").is_dir()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "def get_config():\n    c = base.get_config()\n    c.train.batchsize = 4",
            r", line 4: .*batchsize.* cannot be added",
        ),
        (
            "def get_config():\n    c = base.get_config()\n    c.train.batch_size = 'x'",
            r", line 4: TypeError: .*x is of",
        ),
        ("def get_config():\n    return 1 // 0", r", line 3: ZeroDivisionError"),
        ("def get_config(", r", line 2: SyntaxError"),
        ("def get_config(\0)", r"(, line 2)?: (Syntax|Value)Error: .*null bytes"),
        ("import no_such_module", r", line 2: ModuleNotFoundError"),
        ("def get_config():\n    base.get_config()", ": get_config returns None, not a ConfigDict"),
        ("", r": it has no function get_config that takes 'a'"),
        ("def get_config():\n    return base.get_config()", r": it has no function get_config that takes 'a'"),
    ],
)
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
def test_mistakes_in_a_config_file(tmp_path, body, said):
    file = tmp_path / "mine.py"
    file.write_text(f"from threedim.configs import base\n{body}\n")
    argument = ":a" if "takes 'a'" in said else ""
    problem = main._config_problem(["threedim", f"--config={file}{argument}", "--mode=train"])
    assert re.match(rf"--config={re.escape(str(file))}{said}", problem), problem


def test_settings_of_jax_that_cannot_work(monkeypatch):
    main._check_jax()
    with jax.disable_jit(), pytest.raises(UserError, match="JAX_DISABLE_JIT is set"):
        main._check_jax()
    monkeypatch.setattr(jax, "devices", mock.Mock(side_effect=AssertionError))
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match=r"no device of the platform cuda \(JAX_PLATFORMS\): is there one, and"):
        main._check_jax()


def test_the_environment_does_not_change_random_numbers():
    for name, value in {
        "jax_enable_x64": True,
        "jax_threefry_partitionable": False,
        "jax_default_prng_impl": "rbg",
    }.items():
        expected = getattr(jax.config, name)
        jax.config.update(name, value)
        main._check_jax()
        assert getattr(jax.config, name) == expected


def test_a_compilation_cache_of_the_environment_is_kept(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    for is_given, expected in ((False, before), (True, "elsewhere")):
        monkeypatch.setattr(main, "_CACHE", mock.Mock(value="elsewhere", present=is_given))
        main._use_cache()
        assert jax.config.jax_compilation_cache_dir == expected
    jax.config.update("jax_compilation_cache_dir", before)
