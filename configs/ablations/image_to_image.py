"""Ablation: no stochastic conditioning; every step is conditioned on the input view [3.2]. Training is unchanged."""

from threedim.configs.ablations import _data


def get_config(data: str = "shapes16"):
    c = _data.whole_model(data)
    c.sample.conditioning = "input"
    return c
