"""Every field of a configuration, once, with its unit and its place in the paper (arXiv 2210.04628).

Other files call ``get_config`` and set what differs. On the command line: ``--config.train.batch_size=64``.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()

    c.seed = 0  # of initialization, noise, dropout and the order of the data

    # The data [3].
    d = c.data = ml_collections.ConfigDict()
    d.dir = "data/default"  # folder for what is made from the source: rendered or unpacked objects, and records
    d.source = ""  # folder with SRN splits (folders or zips), or with objects; "" renders procedural shapes
    d.train_split = ""  # folders or zips in source, such as "cars_train"; "": source is itself a folder of objects
    d.val_split = ""
    d.test_split = ""
    d.resplit_seed = -1  # -1: the released splits; else merge, shuffle with this seed, split anew (chairs*)
    d.num_test_objects = 0  # of a folder of objects: held out at random
    d.split_seed = 0  # chooses them
    d.holdout_views = 0  # views of every training object that training does not see
    d.pose = "absolute"  # or "relative": cameras in the coordinates of the pair's clean view
    d.on_bad = "raise"  # "raise" at the first bad object, or "skip" it and list it
    a = d.augment = ml_collections.ConfigDict()  # random changes of a training pair, alike for both views
    a.orientation = False  # turns the world; nothing changes where data.pose is "relative"
    a.scale = (1.0, 1.0)  # lowest and highest factor of the world's size
    a.hue = 0.0  # the hue is turned by up to so many turns either way; 0.5 is every hue
    p = d.procedural = ml_collections.ConfigDict()
    p.kinds = ("chair", "car")
    p.num_train_objects = 1000
    p.num_test_objects = 50
    p.views = 50  # per training object
    p.test_views = 251
    p.size = 64  # pixels
    p.samples = 16  # rays per pixel
    p.seed = 0

    # The network [6, 7.1].
    m = c.model = ml_collections.ConfigDict()
    m.network = "xunet"  # or "concat_unet", the paper's ablation: one UNet on both pictures, stacked along channels
    m.image_size = 128  # height and width in pixels; pictures of another size are resized to it
    m.ch = 256  # channels of the first level; 256 is the 471M model, 448 the 1.3B one
    m.ch_mult = (1, 2, 2, 4)  # channels of each level, as multiples of ch
    m.emb_ch = 1024  # channels of the noise-level and pose embeddings
    m.num_res_blocks = 3  # per level on the way down; one more on the way up
    m.attn_resolutions = (8, 16, 32)  # pixels; where the X-UNet's frames meet
    m.attn_heads = 4
    m.norm_groups = 32  # groups of the normalizations; fewer for small networks, where a group should be some channels
    m.zero_init = True  # as in the paper, attention's output and the network's begin at zero; False: at random
    m.dropout = 0.1
    m.dtype = "bfloat16"  # of convolutions and matrix products: "bfloat16" or "float32"; the rest is float32

    # The diffusion process [2.1, 7.2].
    d = c.diffusion = ml_collections.ConfigDict()
    d.prediction = "eps"  # "eps" (the paper's), "v" (learns global color sooner: for small budgets) or "x"
    d.regression = False  # trains at logsnr_min alone to put out x: an ablation, sampled in one step without guidance
    d.logsnr_min = -20.0
    d.logsnr_max = 20.0
    d.logsnr_shift = 0.0  # of the schedule between its ends, for larger pictures: -2 log(image_size / 64), say
    d.uncond_logsnr = -20.0  # told for the noise frame of an unconditional pair; the paper leaves it open

    # Training [7.2].
    t = c.train = ml_collections.ConfigDict()
    t.batch_size = 128  # pairs per step, over all devices
    t.num_steps = 1_000_000  # the paper does not say
    t.init_from = ""  # a run's folder, a .safetensors file or weights of the package to begin with, of any image size
    t.learning_rate = 1e-4
    t.warmup_examples = 10_000_000  # linear warm-up, in pairs
    t.adam_b1 = 0.9
    t.adam_b2 = 0.99
    t.ema_half_life = 500_000.0  # of the parameter average, in pairs
    t.ema_rampup = 0.05  # the half-life is at most this fraction of the pairs seen so far
    t.microbatches = 1  # parts of a batch that go through the network one after another, to save memory
    # What is computed again to save memory: "none", "blocks" (the activations inside of blocks), or "all" (also those
    # between the blocks of a level): each is slower, and needs less.
    t.remat = "none"
    t.uncond_prob = 0.1  # pairs made unconditional, for guidance
    t.color_weight = 1.0  # how much color counts in the loss, against brightness, where all is noise; 1 is the paper's
    t.num_workers = 8  # processes that read data; 0 reads in the main process
    t.log_every = 100  # steps
    t.checkpoint_every = 5_000  # steps
    t.keep_last = 3  # checkpoints
    t.keep_every = 100_000  # steps; these checkpoints stay for good
    t.sample_every = 10_000  # steps between grids of held-out objects; 0 draws none
    t.sample_objects = 4  # rows of that grid
    t.sample_steps = 250  # denoising steps for that grid

    # The device mesh: data x fsdp devices. The batch is split over both, parameters and optimizer state over fsdp.
    h = c.mesh = ml_collections.ConfigDict()
    h.preset = ""  # or "cpu", "gpu_8", "tpu_v4_32", "tpu_v5e_16", "tpu_v6e_8" (threedim/training/sharding.py)
    h.data = config_dict.placeholder(int)  # -1: all devices that fsdp leaves; None: as the preset says, without one -1
    h.fsdp = config_dict.placeholder(int)  # None: as the preset says, without one 1
    h.cpu_devices = 0  # on a CPU, split it into so many devices; 0 leaves it to JAX: one, or as XLA_FLAGS say

    # A trace for TensorBoard's profile page.
    p = c.profile = ml_collections.ConfigDict()
    p.start = 0  # the first step of it; 0 takes none
    p.steps = 5

    # Sampling [2.2, 7.3].
    s = c.sample = ml_collections.ConfigDict()
    s.seed = 0
    s.preset = "paper"  # "paper": 250 ancestral steps (the paper takes 256); "fast": a tenth of the network evaluations
    # What is set here replaces what the preset says (threedim/training/build.py).
    s.num_steps = config_dict.placeholder(int)  # denoising steps per view
    s.solver = config_dict.placeholder(str)  # "ancestral", "ddim", "dpm_solver_2m" or "dpm_solver_2m_sde"
    s.eta = config_dict.placeholder(float)  # of "ddim": 0 draws no noise, 1 as much as "ancestral"
    s.spacing = config_dict.placeholder(str)  # of the steps: equal in "t" or in "logsnr"
    s.logsnr_range = config_dict.placeholder(tuple)  # for "logsnr": first and last noise level of the network
    s.guidance_interval = config_dict.placeholder(tuple)  # noise levels at which there is guidance
    s.conditioning = "stochastic"  # views that a step may see: all known so far, or "input": the given ones alone
    s.guidance_weight = 3.0  # w in (1 + w) eps_cond - w eps_uncond; 3 for cars, 2 for chairs
    s.fresh_uncond_noise = False  # True draws the unconditional branch's noise frame at every step, not once per view
    s.split = "test"  # "test", "val" or "train" objects; "holdout": held-out cameras of training objects
    s.num_objects = 4  # of that split; 0 takes all
    s.objects_seed = config_dict.placeholder(int)  # chooses them; without it they are evenly spaced over the split
    s.object = ""  # a folder in SRN format to take instead
    s.input_views = (0,)  # numbers of the given views, () gives all; the paper gives view 64 of SRN's test objects
    s.cameras = "object"  # "object": the object's other cameras; "orbit": a circle around it
    s.num_views = 8  # views to draw: the first ones of the object's, or the orbit's; 0 takes all the object's
    s.orbit_elevation = 20.0  # degrees above the horizon
    s.orbit_radius = 0.0  # distance to the origin in the data's units; 0 takes that of the first input view
    s.batch_size = 8  # objects drawn at once
    s.weights = ""  # a .safetensors file, or the name of weights in the package, instead of the workdir's checkpoints
    s.out = ""  # output folder; "" is views/step_N in the workdir, or views/<name of the weights' file>
    s.checkpoint_step = config_dict.placeholder(int)  # the newest checkpoint, unless a step is named here

    # Evaluation [3]: every test object from one input view, all its other views drawn as `sample` says, and scored.
    e = c.evaluate = ml_collections.ConfigDict()
    e.input_view = 64  # number of the given view
    e.max_objects = 0  # for a quick look: so many objects, chosen by the seed; 0 takes all
    e.seed = 0  # of that choice, and of the patch distance
    e.views = ""  # a folder of views drawn before, by any method, to be scored instead: DIR/<object>/000000.png
    e.inception = ""  # file with the weights of the FID's network; "" leaves the FID out
    e.lpips_backbone = ""  # file with torchvision's weights of VGG16, vgg16-397923af.pth
    e.lpips_lin = ""  # file with the weights of LPIPS 0.1 for VGG16, vgg.pth; "" for both leaves LPIPS out
    e.published = "none"  # rows of the paper beside the result: "cars", "chairs", "chairs_star" or "none"
    e.out = ""  # output folder; "" is evaluation/ in the workdir, and there as for sample.out or the ready-made views
    return c
