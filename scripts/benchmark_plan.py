"""What a benchmark runs: its commands in their order, and what can be known to be wrong before any of them."""

from __future__ import annotations

import dataclasses
import runpy
import shlex

from etils import epath

from scripts.ablations import REAL_DATA, TRAINED, VARIANTS, Variant
from threedim.consistency.field import FieldSettings
from threedim.training import checkpoints, run_info

# Whose ablations configs/ablations has, by the file of the whole model's config.
DATA = {"srn_cars": "cars", "srn_chairs_star": "chairs_star", "demo": "demo", "shapes16": "shapes16"}
# Files of weights that scores are taken with, by their fields.
WEIGHTS = ("inception", "lpips_backbone", "lpips_lin")
# Set by this command, or what makes the rows differ.
_TAKEN = {
    "config": "--config",
    "mode": "",
    "workdir": "--workdir",
    "config.sample.seed": "--seeds",
    "config.sample.conditioning": "",
    "config.sample.out": "--out",
    "config.evaluate.out": "--out",
    "config.evaluate.views": "",
    "config.evaluate.max_objects": "--max_objects",
    **{f"config.evaluate.{name}": f"--{name}" for name in WEIGHTS},
    "config.model.network": "",
    "config.diffusion.regression": "",
}
# What the last command does.
FIELDS = "3D consistency"
# A regression has one step, without guidance, and a target of its own.
_NOT_FOR_REGRESSION = (
    "config.diffusion.prediction",
    "config.train.sample_steps",
    "config.train.uncond_prob",
    *(
        f"config.sample.{name}"
        for name in ("preset", "num_steps", "solver", "eta", "spacing", "logsnr_range", "guidance_interval")
    ),
    "config.sample.guidance_weight",
    "config.sample.fresh_uncond_noise",
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
      config: file of the whole model's config.
      out: folder of everything.
      seeds: how many sampling seeds, from 0.
      consistency_seeds: how many of them get a 3D consistency score.
      given: runs that are trained already, by row.
      max_objects, consistency_objects: at most so many objects are drawn, and fitted; 0 for all.
      weights: files by the names in `WEIGHTS`; what has none is not computed.
      consistency_set: NAME=VALUE of the neural field's settings.
      objects_at_once: fields fitted side by side.
      flags: for every call of threedim.main.
    """

    config: str
    out: epath.Path
    seeds: int = 3
    consistency_seeds: int = 3
    given: dict[str, str] = dataclasses.field(default_factory=dict)
    max_objects: int = 0
    consistency_objects: int = 0
    weights: dict[str, str] = dataclasses.field(default_factory=dict)
    consistency_set: tuple[str, ...] = ()
    objects_at_once: int = 1
    flags: tuple[str, ...] = ()

    def workdir(self, row: str) -> str:
        """Folder of a row's training run."""
        return self.given.get(row) or str(self.out / "runs" / row)

    def config_of(self, variant: Variant) -> str:
        """What follows --config=."""
        path = epath.Path(self.config)
        return f"{path.parent / 'ablations' / variant.config}:{DATA[path.stem]}" if variant.config else self.config


@dataclasses.dataclass(frozen=True)
class Job:
    """A command: what it does in words, the arguments of `python`, and the run or the scores that it makes."""

    what: str
    arguments: tuple[str, ...]
    workdir: str
    scores: epath.Path | None = None

    @property
    def text(self) -> str:
        """As one types it."""
        return shlex.join(["python", *self.arguments])


def jobs(plan: Plan) -> list[Job]:
    """All commands in their order; the true views are written before the last."""
    found, views = [], []
    for variant in VARIANTS:
        flags = [flag for flag in plan.flags if variant.key != "regression" or _name(flag) not in _NOT_FOR_REGRESSION]
        main = ("-m", "threedim.main", f"--config={plan.config_of(variant)}")
        workdir = plan.workdir(variant.weights)
        if variant.weights == variant.key and variant.key not in plan.given:
            arguments = (*main, "--mode=train", f"--workdir={workdir}", *flags)
            found.append(Job(f"train {variant.key}", arguments, workdir))
        for seed in range(plan.seeds):
            folder = plan.out / variant.key / f"seed_{seed}"
            own = [*variant.flags, f"--config.sample.seed={seed}", f"--config.evaluate.out={folder}"]
            own += [f"--config.evaluate.max_objects={plan.max_objects}"] if plan.max_objects else []
            own += [f"--config.evaluate.{name}={file}" for name, file in plan.weights.items()]
            arguments = (*main, "--mode=evaluate", f"--workdir={workdir}", *flags, *own)
            found.append(Job(f"evaluate {variant.key}, seed {seed}", arguments, workdir, folder / "results.json"))
            if seed < plan.consistency_seeds:
                views.append(f"--views={variant.key}_seed{seed}={folder / 'views'}")
    views.append(f"--views={REAL_DATA}={plan.out / REAL_DATA / 'views'}")
    arguments = ["-m", "threedim.evaluation.consistency", *views, f"--out={plan.out / 'consistency'}"]
    arguments += [f"--max_objects={plan.consistency_objects}"] if plan.consistency_objects else []
    arguments += [f"--objects_at_once={plan.objects_at_once}"] if plan.objects_at_once > 1 else []
    arguments += [f"--inception={plan.weights['inception']}"] if "inception" in plan.weights else []
    arguments += [f"--set={change}" for change in plan.consistency_set]
    return [*found, Job(FIELDS, tuple(arguments), "", plan.out / "consistency/results.json")]


def check(plan: Plan) -> None:
    """What can be known to be wrong before anything is run, which may take days.

    Raises:
      FileNotFoundError: if a config, a file of weights, or a given run is not there.
      ValueError: if a setting is wrong, or the data has no test objects.
    """
    path = epath.Path(plan.config)
    if path.suffix != ".py" or path.stem not in DATA:
        known = ", ".join(f"configs/{stem}.py" for stem in DATA)
        raise ValueError(f"--config={plan.config}: the ablations have variants of {known} only")
    for file in [path, *(epath.Path(plan.config_of(v).rpartition(":")[0]) for v in VARIANTS if v.config)]:
        if not file.is_file():
            raise FileNotFoundError(f"--config={plan.config}: {file}: no such file")
    if plan.seeds < 1 or not 0 < plan.consistency_seeds <= plan.seeds or plan.objects_at_once < 1:
        raise ValueError(
            f"--seeds and --consistency_at_once must be at least 1, --consistency_seeds from 1 to --seeds; got "
            f"{plan.seeds}, {plan.objects_at_once} and {plan.consistency_seeds}"
        )
    if plan.max_objects < 0 or plan.consistency_objects < 0:
        raise ValueError(
            "--max_objects and --consistency_objects must be 0 (all) or more, got "
            f"{plan.max_objects} and {plan.consistency_objects}"
        )
    for name, file in plan.weights.items():
        if not epath.Path(file).is_file():
            raise FileNotFoundError(f"--{name}={file}: no such file")
    if ("lpips_backbone" in plan.weights) != ("lpips_lin" in plan.weights):
        raise ValueError("--lpips_backbone and --lpips_lin must both be named, or neither")
    for flag in plan.flags:
        if not flag.startswith("--"):
            raise ValueError(f"after --, {flag!r} is no flag; write --name=value")
        if _name(flag) in _TAKEN:
            instead = _TAKEN[_name(flag)]
            raise ValueError(
                f"after --, {flag}: " + (f"give {instead} before --" if instead else "the suite sets this for each row")
            )
    known = [field.name for field in dataclasses.fields(FieldSettings)]
    for change in plan.consistency_set:
        name, equals, _ = change.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--consistency_set={change}: expected NAME=VALUE, NAME one of {', '.join(known)}")
    for row, workdir in plan.given.items():
        if row not in TRAINED:
            raise ValueError(f"--workdir={row}={workdir}: rows with a run of their own are {', '.join(TRAINED)}")
        if checkpoints.latest_step(workdir) is None:
            raise FileNotFoundError(f"--workdir={row}={workdir}: no checkpoint there")
        run_info.read_run_info(workdir)
    data = runpy.run_path(str(path))["get_config"]().data
    number = data.num_test_objects if data.source else data.procedural.num_test_objects
    if not data.test_split and not number and not any("num_test_objects" in flag for flag in plan.flags):
        field = "" if data.source else "procedural."
        raise ValueError(
            f"{plan.config} has no test objects to draw; take another, or add, after --, --config.data.dir=FOLDER "
            f"--config.data.{field}num_test_objects=N"
        )


def _name(flag: str) -> str:
    return flag.removeprefix("--").partition("=")[0]
