"""The command ``threedim``, which does what ``python -m threedim.main`` does."""

import runpy


def run() -> None:
    """Entry point."""
    # Not imported: as the main module its flags are those that --help lists.
    runpy.run_module("threedim.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run()
