"""A small network for benchmarks on a CPU: 5.6 million parameters, 32 px."""

from threedim.configs import base


def get_config():
    c = base.get_config()
    m = c.model
    m.image_size, m.ch, m.emb_ch, m.num_res_blocks = 32, 32, 128, 2
    m.attn_resolutions = (8, 16)
    m.dtype = "float32"
    c.train.batch_size = 8
    c.mesh.cpu_devices = 2
    return c
