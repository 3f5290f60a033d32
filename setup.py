"""Package metadata. Install with ``pip install -e .[test]``; ``[gpu]`` and ``[tpu]`` bring the accelerator's jaxlib."""

import pathlib

import setuptools

setuptools.setup(
    name="threedim",
    version="0.1.0",
    description="3DiM in JAX/Flax: from one picture of an object, its views from any other camera",
    long_description=(pathlib.Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["threedim", "threedim.*"]),
    # Lower bounds are the versions that the tests were run with.
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8.1",
        "dm_pix>=0.4.3",
        "embreex>=2.17.7",
        "etils[epath]>=1.12",
        "flax>=0.12",
        "grain>=0.2.12",
        "imageio>=2.37",
        "imageio-ffmpeg>=0.6",
        "jax>=0.8",
        "ml_collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.28",
        "pillow>=11",
        "scipy>=1.15",
        "tensorboardX>=2.6.4",
        "tensorflow-datasets>=4.9.9",
        "tqdm>=4.67",
        "trimesh>=4.6",
    ],
    extras_require={
        "test": ["pytest>=8.3", "ruff>=0.14"],
        "gpu": ["jax[cuda13]>=0.8"],
        "tpu": ["jax[tpu]>=0.8"],
    },
)
