"""Every benchmark runs at toy size and writes its file. No test looks at a time."""

import json
import types

import jax
import pytest
from commands import run_python

from benchmarks import compare, record, step, variants
from benchmarks.programs import Sampling, example_batch
from threedim import config as config_lib
from threedim.configs import bench_cpu
from threedim.errors import MissingError, UserError
from threedim.training import hardware

HEAD = {"machine": {"cpu": "Xeon", "cores": 2, "device": None}, "versions": {"jax": "1.0"}}
HEAD |= {"commit": {"hash": "abc", "modified": False}, "command": "python -m benchmarks.step"}
TOY = {"image_size": 8, "ch": 32, "ch_mult": "(1,)", "emb_ch": 8, "num_res_blocks": 0, "attn_resolutions": "(8,)"}
NETWORK = [f"--config.model.{name}={value}" for name, value in TOY.items()]
# The tests' compiler settings make the large product take minutes.
RUN_STEP = """
import runpy
from benchmarks import programs
programs.matmul_rate = lambda dtype: 1e9
runpy.run_module("benchmarks.step", run_name="__main__", alter_sys=True)
"""
# The second call, at the end, sets the timer off.
RATE = """lambda dtype, called=[]: called.append(1) or 1e9 if not called else [
    timer.function(*timer.args) for timer in __import__("threading").enumerate() if hasattr(timer, "function")
]"""


def run(how, *arguments):
    done = run_python(*how, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def step_file(tmp_path_factory):
    """Output and file of benchmarks.step."""
    path = tmp_path_factory.mktemp("step") / "figures.json"
    arguments = ["--config=configs/bench_cpu.py", *NETWORK, "--config.train.batch_size=2", "--repeats=1"]
    arguments += ["--config.mesh.cpu_devices=1", f"--compilation_cache={path.parent / 'xla'}"]
    return run(["-c", RUN_STEP], *arguments, f"--json={path}"), record.read(path), arguments


@pytest.mark.parametrize(
    ("command", "numbers"),
    [
        ("render --objects=1 --views=1 --size=8 --samples=1 --repeats=1",
         {"size": 8, "render/procedural cars/objects": 1, "render/procedural chairs/views_per_second": None}),
        ("data --objects=2 --views=2 --image_size=8 --size=8 --workers=0 --seconds=0.1 --repeats=1",
         {"views": 2, "read_record_ms": None, "stream/one core, 0 worker(s)/pairs_per_second": None}),
    ],
)  # fmt: skip
def test_a_benchmark_prints_and_writes_its_figures(tmp_path, capsys, command, numbers):
    path, (name, *arguments) = tmp_path / "figures.json", command.split()
    out = run(["-m", f"benchmarks.{name}"], *arguments, f"--json={path}")
    assert len(out.splitlines()) >= 4
    content = record.read(path)
    assert (content["benchmark"], content["machine"]["device"]) == (name, None)
    assert content["command"].endswith(" ".join(arguments))
    found = compare.numbers(content["figures"])
    for number, value in numbers.items():
        assert found[number] == value if value is not None else found[number] > 0
    compare.main([str(path), str(path)])
    printed = capsys.readouterr().out
    assert "same machine" in printed
    assert all(number in printed for number in numbers)


def test_rates_follow_from_flops_and_seconds(step_file):
    out, content, _ = step_file
    assert (content["benchmark"], content["versions"]["jax"]) == ("step", jax.__version__)
    assert content["machine"]["device"]["count"] == 1
    figures = content["figures"]
    training, denoising = figures["training_step"], figures["denoising_step"]
    assert training["pairs_per_second"] == pytest.approx(2 / training["seconds"])
    for row in (training, denoising):
        assert row["flops_per_second"] == pytest.approx(row["flops"] / row["seconds"])
        assert row["fraction_of_matmul"] == pytest.approx(row["flops_per_second"] / 1e9)
        assert row["from_cache"] is False
        assert all(row[f"{name}_seconds"] > 0 for name in ("first_compile", "cached_compile", "first_step"))
    assert denoising["flops"] < training["flops"] / 3
    assert training["argument_bytes"] > 16 * figures["parameters"]  # parameters, their average and two moments
    lines = out.splitlines()
    assert lines[0].startswith(f"{figures['parameters']:,} parameters, 1 cpu device(s), batch 2, matmul 1 GFLOP/s")
    assert [line.split()[0] for line in lines[2:4]] == ["training", "denoising"]
    assert lines[4] == "the program of the training step was not in the persistent compilation cache"


def test_the_time_limit_prints_what_is_there(step_file, tmp_path):
    """The timer goes off after both steps, whose programs are in the cache by now."""
    path, arguments = tmp_path / "part.json", step_file[2]
    done = run_python(
        "-c", RUN_STEP.replace("lambda dtype: 1e9", RATE), *arguments, "--time_limit=1e6", f"--json={path}"
    )
    assert done.returncode == 124, done.stderr[-2000:]
    assert done.stdout.startswith("stopped after --time_limit=1e+06 s; measured so far:")
    assert "the program of the denoising step came from the persistent compilation cache" in done.stdout
    training = record.read(path)["figures"]["training_step"]
    assert training["from_cache"] is True
    assert training["fraction_of_matmul"] > 0


def test_variants_are_fields_and_compiler_flags():
    config = bench_cpu.get_config()
    changed, options = variants.parse(config, "model.attention=plain train.batch_size=4 xla_some_flag=true xla_level=0")
    assert (changed.model.attention, changed.train.batch_size) == ("plain", 4)
    assert options == {"xla_some_flag": True, "xla_level": 0}
    assert config.train.batch_size == 8
    for wrong in ("model.channels=4", "batch_size=4", "train.batch_size", "train.batch_size=many"):
        with pytest.raises(UserError, match=f"--variant={wrong}"):
            variants.parse(config, wrong)


def test_variants_take_turns(monkeypatch):
    order = []

    def program(config, options, row):
        return lambda: order.append((config.train.batch_size, options))

    monkeypatch.setattr(step, "training_program", program)
    figures = variants.measure(bench_cpu.get_config(), ["train.batch_size=4", "xla_flag=1"], 2, {})
    assert order == 3 * [(8, {}), (4, {}), (8, {"xla_flag": 1})]
    assert list(figures) == ["as it is", "train.batch_size=4", "xla_flag=1"]
    assert "train.batch_size=4" in variants.report(figures)


def test_recomputing_and_microbatches_do_not_count_as_work(step_file):
    c = bench_cpu.get_config()
    c.model.update(TOY | {"ch_mult": (1,), "attn_resolutions": (8,)})
    c.train.batch_size, c.train.remat, c.train.microbatches = 2, "all", 2
    parts = config_lib.network(c), config_lib.process(c), config_lib.recipe(c)
    needed = step_file[1]["figures"]["training_step"]["flops"]
    assert hardware.training_flops(*parts) == needed
    assert (parts[0].remat, parts[2].microbatches) == ("all", 2)


@pytest.fixture
def toy_config(tiny_config):
    tiny_config.model.ch_mult, tiny_config.model.attn_resolutions, tiny_config.sample.num_views = (1,), (8,), 3
    tiny_config.sample.guidance_weight = 0.0
    return tiny_config


@pytest.mark.slow
def test_views_per_second_and_the_largest_batch_of_objects(toy_config, monkeypatch):
    monkeypatch.setattr(step, "matmul_rate", lambda dtype: 1e9)
    sampling = Sampling(toy_config)
    assert sampling.known_views == 4
    real = jax.eval_shape(sampling.example, sampling.params, example_batch(8, 2))
    shapes, expected = ([(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (sampling.shapes(2)[1:], real))
    assert shapes == expected

    monkeypatch.setattr(hardware, "largest", lambda bytes_of, limit, start: (start, bytes_of(start)))
    figures = step.measure(toy_config, 1, sampling=True, gib=0.5)
    found = figures["sampling"]
    assert found["device_bytes"] > found["argument_bytes"] > 4 * figures["parameters"]
    assert found["largest"] == {"batch_size": 2, "device_bytes": found["device_bytes"], "limit_bytes": 2**29}
    assert (found["objects"], found["known_views"], found["evaluations_per_view"]) == (2, 4, 3)
    assert found["views_per_second"] == pytest.approx(2 / found["seconds"])
    assert found["flops"] == 2 * sampling.flops_per_view
    assert "preset paper, 3 steps, 3 evaluations per view, 4 known views" in step.report(figures)

    monkeypatch.setattr(hardware, "largest", lambda bytes_of, limit, start: (1, 5.0))
    with pytest.raises(UserError, match=r"2 objects at once do not fit in 0\.50 GiB, 1 do"):
        step.measure(toy_config, 1, sampling=True, gib=0.5)


def test_relative_poses_and_known_views_change_what_is_sampled(toy_config):
    toy_config.sample.num_views = 0
    absolute = Sampling(toy_config)
    assert absolute.known_views == 251  # all of an object in SRN
    toy_config.sample.conditioning, toy_config.data.pose = "input", "relative"
    relative = Sampling(toy_config)
    assert relative.known_views == 1
    # The target's camera is embedded anew at each step.
    assert relative.flops_per_view > absolute.flops_per_view


def test_largest_training_batch_is_a_whole_number_of_microbatches(tiny_config, monkeypatch):
    tiny_config.train.microbatches, tiny_config.train.remat = 2, "blocks"

    def lower(network, process, recipe, mesh):
        assert (network.remat, recipe.microbatches, mesh.size) == ("blocks", 2, 1)
        return types.SimpleNamespace(compile=lambda: recipe.batch_size), None

    monkeypatch.setattr(step, "lower_training_step", lower)
    monkeypatch.setattr(hardware, "device_bytes", lambda batch: 10 * batch)
    found = step.measure(tiny_config, largest_batch=True, gib=75 / 2**30)["largest_training_batch"]
    assert found == {"batch_size": 6, "microbatches": 2, "remat": "blocks", "device_bytes": 60, "limit_bytes": 75}


@pytest.mark.parametrize("start", [1, 11, 12, 2**20])
def test_the_largest_batch_is_found_by_doubling_and_bisecting(start):
    asked = []

    def bytes_of(batch):
        asked.append(batch)
        return 100 + 10 * batch

    assert hardware.largest(bytes_of, 219, start) == (11, 210)
    assert len(asked) == len(set(asked)) <= 24
    assert hardware.largest(bytes_of, 1219, start, within=0.2)[0] in range(90, 112)
    assert hardware.largest(bytes_of, 105, start) == (0, 0)
    assert hardware.largest(bytes_of, 1e9, start, most=300) == (300, 3100)


def test_a_program_that_the_compiler_refuses_does_not_fit():
    def refuse(message):
        raise jax.errors.JaxRuntimeError(message)

    assert hardware.program_bytes(lambda: refuse("RESOURCE_EXHAUSTED: Used 20G of 16G hbm")) == float("inf")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        hardware.program_bytes(lambda: refuse("INTERNAL: broken"))


def test_memory_of_a_device(monkeypatch):
    def device(kind, stats):
        return types.SimpleNamespace(device_kind=kind, platform="gpu", memory_stats=lambda: stats)

    assert hardware.device_memory(device("NVIDIA H200", {"bytes_limit": 7})) == 7
    assert hardware.device_memory(device("NVIDIA H200", None)) == 141e9
    assert hardware.memory_limit(0.5) == 2**29
    assert hardware.memory_limit() > 2**28  # this machine's
    monkeypatch.setattr(jax, "local_devices", lambda: [device("unknown", None)])
    with pytest.raises(UserError, match="memory of a unknown is unknown; set --memory_gib"):
        hardware.memory_limit()


def test_the_command_names_the_environment_and_not_the_file(monkeypatch):
    for name in record._ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--a --b")
    found = record.command("step", ["--config.a=b c", "--json=y.json", "--repeats=2"])
    assert found == "XLA_FLAGS='--a --b' python -m benchmarks.step '--config.a=b c' --repeats=2"


def test_files_of_figures(tmp_path):
    path = tmp_path / "new" / "a.json"
    record.write(path, "step", HEAD, {"seconds": 1.5})
    assert record.read(path) == {"benchmark": "step", **HEAD, "figures": {"seconds": 1.5}}
    with pytest.raises(MissingError, match=r"b\.json does not exist"):
        record.read(tmp_path / "b.json")
    whole = {"benchmark": "step", **HEAD, "figures": {}}
    for text, message in (
        ("[", "not a JSON file"),
        ("[1]", "no benchmark, command, commit, figures"),
        (json.dumps({name: value for name, value in whole.items() if name != "commit"}), "figures: no commit$"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            record.read(path)


def test_compare(tmp_path, capsys):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    record.write(a, "step", HEAD, {"step": {"seconds": 2.0, "flops": 8, "fits": True}, "rows": [0, 1], "old": 1})
    figures = {"step": {"seconds": 1.0, "flops": 8, "fits": False}, "rows": [5, 4], "name": "x"}
    record.write(b, "step", HEAD | {"versions": {"jax": "2.0", "new": "1"}}, figures)
    compare.main([str(a), str(b)])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        *("made differently (a → b):", "versions/jax: 1.0 → 2.0", "versions/new: (none) → 1"),
        *("a b b/a", "step/seconds 2 1 0.500", "step/flops 8 8 1.000", "rows/0 0 5 -", "rows/1 1 4 4.000"),
    ]
    compare.main([str(a), str(b), "--only", "seconds$"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[5:]] == ["step/seconds"]


def test_compare_refuses_what_cannot_be_compared(tmp_path):
    a, b, absent = (tmp_path / f"{name}.json" for name in "abc")
    record.write(a, "step", HEAD, {"seconds": 1.0})
    record.write(b, "data", HEAD, {"seconds": 1.0})
    for other, only, message in (
        (absent, "", f"error: {absent} does not exist"),
        (b, "", f"error: {a} is of benchmarks.step, {b} of benchmarks.data"),
        (a, "minutes", f"error: {a} and {a} have no number in common that matches 'minutes'"),
        (a, "(", "error: --only='(' is not a regular expression"),
    ):
        with pytest.raises(SystemExit) as error:
            compare.main([str(a), str(other), f"--only={only}"])
        assert error.value.code.startswith(message)  # Python prints a text and exits with code 1
        assert "\n" not in error.value.code
