"""Ablation: the same network trained to regress the target view from noise in one step [3.2]."""

from threedim.configs.ablations import _data


def get_config(data: str = "shapes16"):
    c = _data.whole_model(data)
    c.diffusion.regression, c.diffusion.prediction = True, "x"
    c.train.uncond_prob = 0.0  # nothing to guide
    c.train.sample_steps = 1

    s = c.sample
    s.preset, s.num_steps, s.guidance_weight, s.conditioning = "paper", 1, 0.0, "input"
    return c
