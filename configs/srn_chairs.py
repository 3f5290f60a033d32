"""SRN chairs with the paper's settings: 471M parameters, 128 px, batch 128, guidance 2 [3, 7]."""

from threedim.configs import base


def get_config():
    c = base.get_config()
    c.data.dir = "data/srn_chairs"
    c.data.source = "data/srn"  # the released chairs_{train,val,test}.zip, or unpacked folders
    c.data.train_split, c.data.val_split, c.data.test_split = "chairs_train", "chairs_val", "chairs_test"
    c.sample.guidance_weight = 2.0
    c.sample.input_views = (64,)
    c.sample.num_views = 0
    c.evaluate.published = "chairs"
    return c
