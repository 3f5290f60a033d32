"""Ablation: a plain UNet on both images, concatenated along channels, instead of the X-UNet [3.2]."""

from threedim.configs.ablations import _data


def get_config(data: str = "shapes16"):
    c = _data.whole_model(data)
    c.model.network = "concat_unet"
    # At 128 px in bfloat16 a known view takes 53 MB, and the paper's protocol ends with 251 of them per object.
    c.sample.batch_size = 4
    return c
