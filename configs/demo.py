"""Four procedural objects at 16 px and a network of 0.9 million parameters: trains in minutes on a laptop CPU."""

from threedim.configs import base


def get_config():
    c = base.get_config()
    c.data.dir = "data/demo"
    p = c.data.procedural
    p.num_train_objects, p.num_test_objects = 4, 0
    # With only 50 views per object, a small network memorizes them and does not interpolate.
    p.views, p.size = 410, 32
    c.data.holdout_views = 10

    m = c.model
    m.image_size, m.ch, m.ch_mult, m.emb_ch, m.num_res_blocks = 16, 32, (1, 2), 64, 1
    m.attn_resolutions, m.dropout, m.dtype = (8,), 0.0, "float32"
    c.diffusion.prediction = "v"

    t = c.train
    t.batch_size, t.num_steps, t.num_workers = 16, 1300, 0
    t.learning_rate, t.warmup_examples, t.ema_half_life = 1e-3, 1600, 8000.0
    t.grad_clip = 1.0
    t.log_every, t.checkpoint_every, t.keep_every = 50, 250, 0
    t.sample_every, t.sample_steps = 500, 64

    c.mesh.cpu_devices = 2  # small models leave cores idle within one device

    s = c.sample
    s.split, s.num_objects, s.input_views, s.num_views = "holdout", 4, (0,), 8
    s.preset, s.guidance_weight = "fast", 0.0
    return c
