"""One ordinary UNet on both pictures, stacked along channels, in the X-UNet's place [3.2]."""

from configs.ablations import _data


def get_config(data: str = "shapes16"):
    c = _data.whole_model(data)
    c.model.network = "concat_unet"
    return c
