"""Weights that come with the package: ``threedim.load("shapes64")``, ``--config.sample.weights=shapes64``.

NAME.safetensors has a model card NAME.md and a sheet of samples NAME.png, written by ``python -m scripts.model_card``;
configs/NAME.py is what it was trained with.
"""
