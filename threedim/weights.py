"""Exports the averaged weights of a training run as one ``.safetensors`` file.

python -m threedim.weights --workdir=runs/demo --out=demo.safetensors
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from threedim import errors, files
from threedim.errors import MissingError, UserError
from threedim.trained import open_run, read
from threedim.weights_file import DTYPES, SUFFIX, check_new_file, save_weights


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m threedim.weights", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=files.path, required=True, help="folder of the run, local or gs://")
    parser.add_argument("--out", type=files.path, required=True, help=f"file to write, ending in {SUFFIX}")
    parser.add_argument("--step", type=int, help="checkpoint to export; -1 for the best; defaults to the newest")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="bfloat16 (default) is half the size")
    parser.add_argument(
        "--card", type=files.path, help="JSON file with an object to store in the file: data, scores, license"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    given = parser.parse_args(argv)
    with errors.one_line():
        check_new_file(given.out, given.overwrite)
        card = _read_card(epath.Path(given.card)) if given.card else {}
        run, params = read(functools.partial(open_run, given.workdir, given.step))
        options = {"card": card, "dtype": given.dtype, "overwrite": given.overwrite}
        size = save_weights(given.out, params, run.config, training_steps=run.step, **options)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{given.out}: {count:,} parameters of step {run.step:,} in {given.dtype}, {size / 1e6:.2f} MB")


def _read_card(path: epath.Path) -> dict[str, Any]:
    if not files.is_file(path):
        raise MissingError(f"{path}: no such file")
    try:
        card = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(card, dict):
        raise UserError(f"{path}: a card must be a JSON object, got {type(card).__name__}")
    return card


if __name__ == "__main__":
    main()
