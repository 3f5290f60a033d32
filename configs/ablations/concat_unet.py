"""One ordinary UNet on both pictures, stacked along channels, in the X-UNet's place [3.2]."""

from configs.ablations import _data


def get_config(data: str = "shapes16"):
    c = _data.whole_model(data)
    c.model.network = "concat_unet"
    # A known view takes 53 MB at 128 px in bfloat16, and the paper's protocol ends with 251 of them for each object.
    c.sample.batch_size = 4
    return c
