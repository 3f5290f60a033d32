"""No stochastic conditioning [3.2]: every step of every view sees the input view. Training is the whole model's own."""

from configs.ablations import _data


def get_config(data: str = "shapes16"):
    c = _data.whole_model(data)
    c.sample.conditioning = "input"
    return c
