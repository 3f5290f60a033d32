import os

# One process, a fixed number of threads and no accelerator: the same numbers everywhere.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
