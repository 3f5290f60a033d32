"""Command line of threedim.

    python -m threedim.main --config=configs/demo.py --mode=train --workdir=runs/demo

Modes:
  prepare  render or read the data and convert it to records (train does it where needed)
  train    train, from the newest checkpoint in --workdir if there is one
  sample   draw new views with the averaged weights in --workdir

Any field of the configuration can be set: --config.train.batch_size=64. See configs/base.py for all of them.
"""

from __future__ import annotations

import sys

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from threedim import rollout
from threedim.data import sources
from threedim.training import loop

MODES = ("prepare", "train", "sample")

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, such as configs/demo.py.")
_MODE = flags.DEFINE_enum("mode", None, MODES, "What to do.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, samples. Local or gs://.")
_ALLOW_CHANGE = flags.DEFINE_bool(
    "allow_change", False, "Go on with a run although architecture, seed, batch size or data differ from its beginning."
)
_CACHE = flags.DEFINE_string(
    "compilation_cache", "~/.cache/threedim/xla", "Folder that keeps compiled programs between runs; empty for none."
)
flags.mark_flags_as_required(["config", "mode"])


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    config, mode = _CONFIG.value, _MODE.value
    if mode != "prepare" and not _WORKDIR.value:
        raise app.UsageError(f"--mode={mode} needs --workdir=FOLDER")
    if _CACHE.value:
        jax.config.update("jax_compilation_cache_dir", str(epath.Path(_CACHE.value).expanduser()))
    config.lock()
    try:
        if mode == "prepare":
            sources.prepare_from_config(config.data)
        elif mode == "train":
            loop.train(config, _WORKDIR.value, allow_change=_ALLOW_CHANGE.value)
        else:
            rollout.sample(config, _WORKDIR.value)
    except (ValueError, OSError, FloatingPointError) as error:
        # What the user can mend is said in one line; --verbosity=1 shows where it came from.
        if logging.level_debug():
            raise
        sys.exit(f"error: {error}")


def run() -> None:
    """Entry point that parses flags; what is wrong with them is said without a traceback."""
    app.run(main)


if __name__ == "__main__":
    run()
