"""The folder in which JAX keeps compiled programs between runs."""

from __future__ import annotations

import re
import warnings
from typing import Any

import jax
from etils import epath

_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '(\S+)'")


def use(folder: str) -> None:
    """Keeps compiled programs in a local folder or on gs://; "" leaves that of JAX's settings.

    A process that is killed while JAX writes an entry, or a full disk, leaves half of it. JAX would warn of it and
    compile again in every later run, and never replace it: here it is removed as soon as JAX warns.
    """
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
    show = warnings.showwarning

    def remove_damaged(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if not (found := _DAMAGED.match(str(message))):
            return show(message, *args, **kwargs)
        for path in epath.Path(jax.config.jax_compilation_cache_dir).glob(f"{found[1]}-*-cache"):
            path.unlink(missing_ok=True)

    warnings.showwarning = remove_damaged
