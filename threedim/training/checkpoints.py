"""Checkpoints: saved in the background, restored bit for bit or not at all. Only here and in `preservation` is Orbax.

A run's folder (workdir) holds::

    checkpoints/<step>/state    the arrays, in Orbax's format: a nested dict named like the state's fields
    checkpoints/<step>/leaves   JSON: shape, dtype and checksum of each array, by path ("ema_params/down_0/kernel")
    checkpoints/<step>/files.json   size of each file of the two
    checkpoints/<step>/eval.json    held-out loss, if it was computed at this step

A checkpoint gets its final name when it is complete; a killed run leaves a folder with a temporary name, which is
ignored, and removed by the next run. Orbax casts a wrong dtype silently and does not notice a changed byte in an array:
here dtypes, shapes, paths and checksums are compared, and a difference is an error.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from threedim import arrays as arrays_lib
from threedim.errors import MissingError, UserError
from threedim.files import check_regular, is_file
from threedim.training import preservation
from threedim.training.orbax_log import quiet_orbax

PyTree = Any
Leaves = dict[str, jax.ShapeDtypeStruct]  # by path

_CHECKPOINT_FOLDER = "checkpoints"
_ITEMS = ("state", "leaves")
_FILE_LIST = "files.json"
# Stands for the step with the lowest held-out loss.
BEST = -1
# A checkpoint is verified in pieces of about this size, so that it need not fit into memory.
_VERIFY_BYTES = 2**30


class CheckpointError(UserError):
    """A checkpoint could not be saved or restored; the message names the folder, the cause, and how to continue."""


class Checkpoints:
    """The checkpoints of one run. A context manager: leaving it waits for the save in progress.

    The checkpoint with the lowest held-out loss is kept beside those that the arguments ask for.

    All processes of a run create one and call its methods in the same order; they share the folder.

    Args:
      workdir: folder of the run, local or gs://; created if missing.
      keep_last: number of newest checkpoints to keep, at least 1.
      keep_every: additionally keeps, for good, the first checkpoint at or after each multiple of this many steps.
        0 keeps none.

    Raises:
      UserError: if a number is out of range.
    """

    def __init__(self, workdir: epath.PathLike, *, keep_last: int, keep_every: int = 0):
        for name, value, low in (("keep_last", keep_last, 1), ("keep_every", keep_every, 0)):
            if value < low:
                raise UserError(f"{name} must be at least {low}, got {value}")
        quiet_orbax()
        self._saving = None
        self._folder = _checkpoint_folder(workdir)
        self._losses = preservation.read_losses(self._folder, _finished_steps(self._folder))
        best = preservation.Lowest(self._losses)
        policies = [checkpoint_managers.LatestN(keep_last), preservation.FirstOfEach(keep_every), best]
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._list_files),
            ),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def save(self, step: int, state: PyTree, held_out_loss: float | None = None) -> bool:
        """Starts a save in the background, after waiting for the previous one.

        When it returns, the state may be donated: Orbax has copied it to the host (on a CPU it holds the buffers, and
        JAX then copies instead of reusing them).

        Args:
          step: number of finished steps.
          state: tree of named numeric arrays; may be sharded.
          held_out_loss: of this state, if known; infinite and NaN count as unknown.

        Returns:
          Whether a save was started: False if the step is already saved.

        Raises:
          CheckpointError: if an earlier save failed, or if there are checkpoints of later steps.
          ValueError: if a leaf is not a numeric array.
        """
        steps = list(self._manager.all_steps())
        if step in steps:
            return False
        if steps and step < max(steps):
            raise CheckpointError(
                f"saving step {step}: {self._folder} already holds later steps {[s for s in steps if s > step]}. To "
                "train on from an earlier step, move the later folders away first."
            )
        leaves = {path: jnp.asarray(leaf) for path, leaf in arrays_lib.by_path(state).items()}
        sums = arrays_lib.checksums(leaves)
        table = {path: [leaf.dtype.name, list(leaf.shape), sums[path]] for path, leaf in leaves.items()}
        self.wait()
        self._saving = step
        if held_out_loss is not None and math.isfinite(held_out_loss):
            self._losses[step] = held_out_loss
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(arrays_lib.nest(leaves)),
            leaves=ocp.args.JsonSave({"step": step, "leaves": table, "crc32": _crc32(table)}),
        )
        self._call("saving", lambda: self._manager.save(step, args=items, force=True))
        return True

    def latest_step(self) -> int | None:
        """Step of the newest finished checkpoint, or None."""
        return max(_finished_steps(self._folder), default=None)

    def best(self) -> tuple[float, int]:
        """The lowest held-out loss of the saved checkpoints and its step; infinite and 0 if none has a loss."""
        return min(((loss, step) for step, loss in self._losses.items()), default=(math.inf, 0))

    def restore(self, abstract_state: PyTree, step: int | None = None) -> PyTree:
        """Reads a checkpoint.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` (or arrays) like the saved one. Each leaf is placed on its
            sharding, which may differ from that of the run that saved; the first local device if it has none.
          step: the newest if None.

        Returns:
          The state, bit for bit as saved, in the structure of ``abstract_state``.

        Raises:
          MissingError: if there is no such checkpoint.
          CheckpointError: if paths, shapes or dtypes differ (the message lists them), or if the checkpoint is damaged
            (the message names its folder and the last good one before it).
        """
        self.wait()
        return _restore(self._folder, step, abstract_state)

    def wait(self) -> None:
        """Waits for the save in progress; raises CheckpointError if it failed."""
        self._call("saving", self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for the save in progress and ends the background threads."""
        self._call("saving", self._manager.close)

    def _list_files(self) -> None:
        """Runs in Orbax's thread, on the primary process, when everything is written but not visible yet."""
        # On an object store the folder has its final name all along.
        step_folder = self._folder / f"{self._saving}{ocp.utils.TMP_DIR_SUFFIX}"
        step_folder = step_folder if step_folder.exists() else self._folder / str(self._saving)
        sizes = {
            str(path.relative_to(step_folder)): path.stat().length
            for item in _ITEMS
            for path in _files_below(step_folder / item)
        }
        (step_folder / _FILE_LIST).write_text(json.dumps(sizes, indent=0))
        if self._saving in self._losses:
            preservation.write_loss(step_folder, self._losses[self._saving])

    def _call(self, doing: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:  # Orbax hands on whatever the storage raised in its thread
            if "No space left on device" in str(error):
                last = self.latest_step()
                there = f"the last checkpoint is that of step {last}" if last is not None else "there is no checkpoint"
                problem = f"no space left on device while {doing} a checkpoint to {self._folder}; {there}"
                raise CheckpointError(f"{problem}. Free some space and run the same command again.") from error
            raise CheckpointError(f"{doing} a checkpoint to {self._folder} failed: {error}") from error


def restore_params(workdir: epath.PathLike, abstract_params: PyTree, step: int | None = None) -> PyTree:
    """Reads the averaged parameters, and nothing else, of a run that may still be training.

    Arguments and errors are those of `Checkpoints.restore`.
    """
    quiet_orbax()
    return _restore(_checkpoint_folder(workdir), step, {"ema_params": abstract_params}, only="ema_params/")[
        "ema_params"
    ]


def find_step(workdir: epath.PathLike, step: int | None = None) -> int:
    """The step of a finished checkpoint in a run's folder: the newest if ``step`` is None, the best if it is `BEST`.

    Raises:
      MissingError: if there is no such checkpoint.
    """
    return _find_step(_checkpoint_folder(workdir), step)


def identity(workdir: epath.PathLike, step: int) -> str:
    """The sha256 of the checksums of a checkpoint's averaged parameters, which are not read; "" if it is damaged."""
    table, problem = _read_checked_table(_checkpoint_folder(workdir) / str(step))
    sums = [] if problem else sorted(item for item in table[1].items() if item[0].startswith("ema_params/"))
    return hashlib.sha256(repr(sums).encode()).hexdigest() if sums else ""


def _checkpoint_folder(workdir: epath.PathLike) -> epath.Path:
    folder = epath.Path(workdir) / _CHECKPOINT_FOLDER
    # Orbax wants an absolute path.
    return folder if "://" in str(folder) else folder.expanduser().resolve()


def _finished_steps(folder: epath.Path) -> list[int]:
    paths = folder.iterdir() if folder.exists() else ()
    steps = [path for path in paths if path.name.isascii() and path.name.isdigit()]
    if wrong := [path for path in steps if not path.is_dir()]:
        raise CheckpointError(f"{wrong[0]} is not the folder of a checkpoint; move it away")
    [check_regular(path / "_CHECKPOINT_METADATA") for path in steps]  # Orbax would wait for a pipe
    return sorted(int(path.name) for path in steps if ocp.utils.is_checkpoint_finalized(path))


def _find_step(folder: epath.Path, step: int | None) -> int:
    steps = _finished_steps(folder)
    if not steps:
        raise MissingError(f"no checkpoint in {folder.parent}: train first, or name the folder of a trained run")
    if step == BEST:
        losses = preservation.read_losses(folder, steps)
        if not losses:
            raise MissingError(f"no checkpoint in {folder} has a held-out loss: set train.eval_every")
        return min(losses, key=lambda step: (losses[step], step))
    if step is not None and step not in steps:
        raise MissingError(f"no checkpoint of step {step} in {folder}; there are {', '.join(map(str, steps))}")
    return max(steps) if step is None else step


def _restore(folder: epath.Path, step: int | None, abstract_state: PyTree, only: str = "") -> PyTree:
    """The saved arrays, or those whose path begins with ``only``, in the structure of ``abstract_state``."""
    step = _find_step(folder, step)
    step_folder = folder / str(step)
    table, problem = _read_checked_table(step_folder)
    if problem is not None:
        raise _damaged(folder, step, problem)
    saved, sums = table
    wanted = arrays_lib.by_path(abstract_state)
    saved = {path: leaf for path, leaf in saved.items() if path.startswith(only)}
    if differences := arrays_lib.mismatches(saved, wanted):
        raise CheckpointError(f"{step_folder} does not fit the state to restore:\n  {arrays_lib.listed(differences)}")
    leaves, problem = _attempt(_read_arrays, step_folder, wanted)
    if problem is not None:
        if damage := _verify(step_folder):
            raise _damaged(folder, step, damage)
        raise CheckpointError(f"{step_folder} is intact but could not be restored: {problem}")
    if bad := [path for path, checksum in arrays_lib.checksums(leaves).items() if checksum != sums[path]]:
        raise _damaged(folder, step, f"the checksum does not match in {arrays_lib.listed(bad, ', ')}")
    return arrays_lib.like(abstract_state, leaves)


def _damaged(folder: epath.Path, step: int, problem: str) -> CheckpointError:
    """The error for a damaged checkpoint; reads the earlier ones to find the last good one."""
    if not (folder / str(step)).exists():
        raise MissingError(f"{folder / str(step)} was removed while it was read, as a running trainer does; try again")
    bad = [step]
    for earlier in sorted((s for s in _finished_steps(folder) if s < step), reverse=True):
        if _verify(folder / str(earlier)) is None:
            away = ", ".join(str(folder / str(s)) for s in bad)
            way_out = f"The last good checkpoint before it is that of step {earlier}: {folder / str(earlier)}. "
            way_out += f"To continue from step {earlier}, delete or move away {away} and start again."
            break
        bad.append(earlier)
    else:
        way_out = f"There is no good checkpoint before it: to start from step 0, delete or move away {folder}."
    if newer := [s for s in _finished_steps(folder) if s > step]:
        way_out += f" (Newer checkpoints were not checked: steps {', '.join(map(str, newer))}.)"
    return CheckpointError(f"the checkpoint of step {step} is damaged: {folder / str(step)}: {problem}. {way_out}")


def _verify(step_folder: epath.Path) -> str | None:
    """What is wrong with a checkpoint, or None. Reads all of it, in this process alone, on the host."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"verify_{jax.process_index()}",
    )
    table, problem = _read_checked_table(step_folder, alone)
    if problem is not None:
        return problem
    saved, sums = table
    pieces, size = [{}], 0
    for path, leaf in saved.items():
        if size > _VERIFY_BYTES:
            pieces, size = [*pieces, {}], 0
        pieces[-1][path] = leaf
        size += leaf.size * leaf.dtype.itemsize
    for piece in pieces:
        leaves, problem = _attempt(_read_arrays, step_folder, piece, alone)
        if problem is not None:
            return problem
        for path, checksum in arrays_lib.checksums(leaves).items():
            if checksum != sums[path]:
                return f"the checksum does not match in {path}"
    return None


def _read_checked_table(step_folder: epath.Path, options=None) -> tuple[Any, str | None]:
    """`_read_table` after `_check_files`, and what is wrong or None."""
    problem = _check_files(step_folder)
    return (None, problem) if problem is not None else _attempt(_read_table, step_folder, options)


def _files_below(folder: epath.Path) -> list[epath.Path]:
    return [found for path in sorted(folder.iterdir()) for found in (_files_below(path) if path.is_dir() else [path])]


def _check_files(step_folder: epath.Path) -> str | None:
    """Which file is missing or truncated, or None; reads no arrays.

    This comes before Orbax reads, since Orbax abandons its other reads when one array cannot be read, and Python then
    prints a page about each.
    """
    if not is_file(list_path := step_folder / _FILE_LIST):
        return f"{_FILE_LIST} is missing"
    sizes, problem = _attempt(
        lambda: {str(name): int(size) for name, size in json.loads(list_path.read_text()).items()}
    )
    if problem is not None:
        return f"{_FILE_LIST}: {problem}"
    for name, size in sizes.items():
        path = step_folder / name
        if not is_file(path):
            return f"{name} is missing"
        if path.stat().length != size:
            return f"{name} has {path.stat().length} bytes instead of {size}"
    return None


def _attempt(read: Callable, *args) -> tuple[Any, str | None]:
    """What ``read`` returns and None; or None and why it failed."""
    try:
        return read(*args), None
    except Exception as error:  # Orbax raises plain Exception, and what the storage and the JSON parser raise
        problem = str(error).split(" [tensorstore_spec")[0].split(". See full TensorStore")[0]
        if isinstance(error, PermissionError | UnicodeError) or "PERMISSION_DENIED" in problem:
            raise CheckpointError(f"a checkpoint cannot be read, but need not be damaged: {problem}") from error
        return None, f"it cannot be read: {problem or repr(error)}"


def _read_table(step_folder: epath.Path, options=None) -> tuple[Leaves, dict[str, str]]:
    """Shapes and dtypes, and checksums, by path."""
    options = options or ocp.options.MultiprocessingOptions()
    with ocp.Checkpointer(ocp.JsonCheckpointHandler(), multiprocessing_options=options) as reader:
        content = reader.restore(step_folder / "leaves", args=ocp.args.JsonRestore())
    table, step = content["leaves"], content.get("step")
    if step is not None and step != int(step_folder.name):
        raise UserError(f"it is a copy of the checkpoint of step {step}")
    if content["crc32"] != _crc32(table):
        raise UserError("it was changed after saving")
    saved = {path: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype)) for path, (dtype, shape, _) in table.items()}
    return saved, {path: checksum for path, (_, _, checksum) in table.items()}


def _crc32(table: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(table, sort_keys=True).encode())


def _read_arrays(step_folder: epath.Path, wanted: Leaves, options=None) -> dict[str, Any]:
    """The arrays with these paths: on their shardings, or as NumPy arrays where ``options`` say to read alone."""

    def restore_args(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
        if options is not None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    args = ocp.args.PyTreeRestore(
        item=arrays_lib.nest(wanted),
        restore_args=arrays_lib.nest({path: restore_args(leaf) for path, leaf in wanted.items()}),
        partial_restore=True,
    )
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler, multiprocessing_options=options or ocp.options.MultiprocessingOptions()) as reader:
        tree = reader.restore(step_folder / "state", args=args)
    return {path: functools.reduce(lambda node, key: node[key], path.split("/"), tree) for path in wanted}
