"""SRN cars with the paper's settings: 471M parameters, 128 px, batch 128, guidance 3 [3, 7]."""

from threedim.configs import base


def get_config():
    c = base.get_config()
    c.data.dir = "data/srn_cars"
    c.data.source = "data/srn"  # the released cars_train.zip, cars_val.zip and cars_test.zip, or unpacked folders
    c.data.train_split, c.data.val_split, c.data.test_split = "cars_train", "cars_val", "cars_test"
    c.sample.guidance_weight = 3.0
    c.sample.input_views = (64,)
    c.sample.num_views = 0
    c.evaluate.published = "cars"
    return c
