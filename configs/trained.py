"""The settings that trained weights were made with: ``--config=trained:SOURCE``.

SOURCE is a run's folder, a .safetensors file, or the name of packaged weights. It is what ``--mode=sample`` and
``--mode=evaluate`` take without ``--config``.
"""

import ml_collections

from threedim import config as config_lib
from threedim import weights_file
from threedim.configs import base
from threedim.trained import open_trained, packaged_names

# How the network was trained, and on which devices, is of no use to who samples from it.
_SECTIONS = ("model", "diffusion", "data", "sample", "evaluate")


def get_config(source: str = "shapes64"):
    config = base.get_config()
    trained = open_trained(source)
    for section in _SECTIONS:
        _update(config[section], trained.config.get(section, {}))
    for name in config_lib.PATHS:
        section, field = name.split(".")
        if section in ("sample", "evaluate"):
            config[section][field] = ""
    if weights_file.is_weights_file(source) or source in packaged_names():
        config.sample.weights = source
    return config


def _update(config: ml_collections.ConfigDict, values) -> None:
    """Sets the fields that this version has."""
    for name, value in values.items():
        if name in config and isinstance(config[name], ml_collections.ConfigDict):
            _update(config[name], value)
        elif name in config:
            config[name] = tuple(value) if isinstance(value, list) else value
