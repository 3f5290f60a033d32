"""All configuration fields, with their defaults, units and the paper's sections (arXiv 2210.04628; see docs/method.md).

Every other file in this folder calls ``get_config`` and changes some of them. On the command line, override any field
with ``--config.train.batch_size=64``. In paths, ``~`` and environment variables are replaced.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """The defaults."""
    c = ml_collections.ConfigDict()
    c.seed = 0  # seeds initialization, noise, dropout and data order
    c.data = _data()
    c.model = _model()
    c.diffusion = _diffusion()
    c.train = _train()
    c.mesh = _mesh()
    c.profile = _profile()
    c.sample = _sample()
    c.evaluate = _evaluate()
    c.lock()  # a misspelled field is an error, and not a new one
    return c


def _data() -> ml_collections.ConfigDict:
    """Data [3]."""
    d = ml_collections.ConfigDict()
    d.dir = "data/default"  # output folder: rendered or unpacked objects, and the records made from them
    d.source = ""  # folder with SRN splits (folders or zips) or with objects; "" renders procedural shapes
    d.train_split = ""  # folder or zip inside source, e.g. "cars_train"; "": source itself is a folder of objects
    d.val_split = ""  # "" for none
    d.test_split = ""  # "" for none
    d.resplit_seed = -1  # -1 keeps the released splits; otherwise merge, shuffle and re-split (chairs*) [3]
    d.num_test_objects = 0  # objects held out for testing when source is a folder of objects
    d.split_seed = 0  # selects those objects
    d.holdout_views = 0  # views of each training object withheld from training
    d.pose = "absolute"  # "absolute", or "relative": cameras expressed in the frame of the pair's clean view
    d.on_bad = "raise"  # "raise" stops at the first invalid object; "skip" leaves it out and lists it
    # How folders of views are read (docs/data.md); also for sample.object.
    d.axes = ""  # camera axes of the files: "opencv" or "opengl"; "" for those of the layout
    d.world_to_camera = config_dict.placeholder(bool)  # files hold world-to-camera matrices; None: as the layout says
    d.up = ""  # world axis that points up in the files, "x", "-x", "y", "-y", "z" or "-z": it becomes z
    d.scale = 1.0  # factor of positions
    d.center = False  # moves the point that the cameras look at to the origin, before scaling
    d.fit = "refuse"  # pictures that are not square: "refuse", "pad" with white, or "crop" to what is not white
    d.check_cameras = True  # refuses cameras that make no sense, and warns of unlikely ones
    d.strict = False  # makes warnings errors
    d.allow_outside = False  # read what links and ".." lead to outside of the source
    a = d.augment = ml_collections.ConfigDict()  # applied identically to both views of a pair
    a.orientation = False  # random rotation of the world; has no effect with relative poses
    a.scale = (1.0, 1.0)  # range of the random world scale
    a.hue = 0.0  # maximum hue rotation in turns, in either direction; 0.5 covers all hues
    p = d.procedural = ml_collections.ConfigDict()  # used when source is ""
    p.kinds = ("chair", "car")  # object classes, in turn
    p.num_train_objects = 1000
    p.num_test_objects = 50
    p.views = 50  # per training object
    p.test_views = 251  # per test object
    p.size = 64  # height and width, pixels
    p.samples = 16  # rays per pixel
    p.seed = 0  # selects shapes and cameras
    return d


def _model() -> ml_collections.ConfigDict:
    """Network [2.3, 6, 7.1]."""
    m = ml_collections.ConfigDict()
    m.network = "xunet"  # "xunet", or "concat_unet": one UNet on both images stacked along channels [3.2]
    m.image_size = 128  # height and width, pixels; images of other sizes are resized
    m.ch = 256  # channels of the first level; 256 for the 471M model, 448 for the 1.3B model
    m.ch_mult = (1, 2, 2, 4)  # channels of each level, in multiples of ch
    m.emb_ch = 1024  # channels of the noise-level and pose embeddings
    m.num_res_blocks = 3  # per level on the way down; one more on the way up
    m.attn_resolutions = (8, 16, 32)  # feature map sizes with self- and cross-attention, pixels
    m.attn_heads = 4
    m.norm_groups = 32  # groups of each GroupNorm; use fewer if a group would be a single channel
    m.zero_init = True  # zero-initialize attention outputs and the last convolution, as in the paper
    m.dropout = 0.1
    m.dtype = "bfloat16"  # convolutions and matrix products: "bfloat16" or "float32"; everything else is float32
    m.attention = "auto"  # "plain" operations, "cudnn" (NVIDIA GPUs), or "auto": cuDNN where it is safe and faster
    return m


def _diffusion() -> ml_collections.ConfigDict:
    """Diffusion process [2.1, 7.2]."""
    d = ml_collections.ConfigDict()
    d.prediction = "eps"  # network output: "eps" (the paper's), "v" or "x"
    d.regression = False  # train at logsnr_min only, to predict x in one unguided step [3.2]
    d.logsnr_min = -20.0
    d.logsnr_max = 20.0
    d.logsnr_shift = 0.0  # shifts the schedule between its ends, e.g. -2 log(image_size / 64) for larger images
    d.uncond_logsnr = -20.0  # noise level given for the noise frame of unconditional pairs; open in the paper
    return d


def _train() -> ml_collections.ConfigDict:
    """Training [7.2]."""
    t = ml_collections.ConfigDict()
    t.batch_size = 128  # pairs per step, over all devices
    t.num_steps = 1_000_000  # open in the paper
    t.init_from = ""  # run folder, .safetensors file or packaged weights to start from (docs/training.md)
    t.learning_rate = 1e-4
    t.warmup_examples = 10_000_000  # length of the linear warm-up, pairs
    t.schedule = "constant"  # after the warm-up; or "cosine" or "linear": falls to zero at num_steps
    t.decay_start = 0  # pairs before it falls
    t.grad_clip = 0.0  # largest global norm of the gradient; 0 does not clip, as in the paper
    t.adam_b1 = 0.9
    t.adam_b2 = 0.99
    t.ema_half_life = 500_000.0  # half-life of the parameter average, pairs
    t.ema_rampup = 0.05  # upper bound of that half-life, as a fraction of the pairs seen so far
    t.microbatches = 1  # splits each batch into parts that run one after another, to save memory
    t.remat = "none"  # recompute activations to save memory: "none", "blocks" (inside blocks), "all" (also between)
    t.uncond_prob = 0.1  # probability of an unconditional pair, for guidance
    t.color_weight = 1.0  # loss weight of color relative to brightness at high noise; 1 is the paper's loss
    t.num_workers = 8  # data loading processes, at most one a core; 0 loads in the main process
    t.log_every = 100  # steps
    t.checkpoint_every = 5_000  # steps
    t.checkpoint_minutes = 10.0  # at most this long between checkpoints; with several processes, as of a log line
    t.keep_last = 3  # number of most recent checkpoints to keep
    t.keep_every = 100_000  # steps between checkpoints that are never deleted; 0 for none
    t.eval_every = 5_000  # steps between held-out losses, by which the best checkpoint is chosen; 0 disables them
    t.eval_examples = 256  # pairs per held-out loss
    t.sample_every = 10_000  # steps between preview images of held-out objects, and their PSNR; 0 disables them
    t.sample_objects = 4  # objects per preview image
    t.sample_steps = 250  # denoising steps of the preview images
    return t


def _mesh() -> ml_collections.ConfigDict:
    """Device mesh: data x fsdp devices. Both axes split the batch; fsdp also splits parameters and optimizer state."""
    h = ml_collections.ConfigDict()
    h.preset = ""  # "", "cpu", "gpu_8", "tpu_v4_32", "tpu_v5e_16" or "tpu_v6e_8" (threedim/training/sharding.py)
    h.data = config_dict.placeholder(int)  # devices; -1: all that fsdp leaves; None: the preset's, or -1
    h.fsdp = config_dict.placeholder(int)  # devices; None: the preset's, or 1
    h.cpu_devices = 0  # number of JAX devices to split a CPU into; 0 keeps JAX's default
    return h


def _profile() -> ml_collections.ConfigDict:
    """Profiling: a trace for TensorBoard."""
    p = ml_collections.ConfigDict()
    p.start = 0  # first traced step; 0 disables tracing
    p.steps = 5  # number of traced steps
    return p


def _sample() -> ml_collections.ConfigDict:
    """Sampling [2.2, 7.3]."""
    s = ml_collections.ConfigDict()
    s.seed = 0
    s.preset = "paper"  # "paper": 250 ancestral steps; "fast": a tenth of the network evaluations; "draft": a fortieth
    # These override the preset (threedim/config.py).
    s.num_steps = config_dict.placeholder(int)  # denoising steps per view
    s.solver = config_dict.placeholder(str)  # "ancestral", "ddim", "dpm_solver_2m" or "dpm_solver_2m_sde"
    s.eta = config_dict.placeholder(float)  # noise of "ddim": 0 for none, 1 for as much as "ancestral"
    s.spacing = config_dict.placeholder(str)  # steps equally spaced in "t" or in "logsnr"
    s.logsnr_range = config_dict.placeholder(tuple)  # first and last log SNR, with spacing "logsnr"
    s.guidance_interval = config_dict.placeholder(tuple)  # range of log SNR in which guidance is applied
    s.conditioning = "stochastic"  # condition on all views known so far, or on the "input" views only [3.2]
    s.guidance_weight = 3.0  # w in (1 + w) eps_cond - w eps_uncond; 3 for cars, 2 for chairs
    s.fresh_uncond_noise = False  # resample the unconditional noise frame at each step rather than once per view
    s.split = "test"  # objects of "test", "val" or "train", or "holdout": held-out cameras of training objects
    s.num_objects = 4  # objects of that split; 0 for all
    s.objects_seed = config_dict.placeholder(int)  # selects objects at random; None spaces them evenly
    s.object = ""  # a single object folder, instead of a split
    s.image = ""  # a single picture without a camera, instead of a split
    s.mask = ""  # a picture of the image's size, black where its background is; "" for alpha or a plain background
    s.azimuth = 0.0  # of the image's camera, degrees; only differences to target cameras count
    s.elevation = 20.0  # of the image's camera above the horizon, degrees
    s.elevations = ()  # tries several instead, and shows the results side by side, such as (0, 10, 20, 30, 40)
    s.radius = config_dict.placeholder(float)  # distance of the image's camera; None: that of the training data
    s.fov = config_dict.placeholder(float)  # field of view of the framed image, degrees; None: as above
    s.fill = 0.72  # longer side of the image's object, in sizes of the framed image
    s.input_views = (0,)  # numbers of the input views; () for all. The paper uses view 64 of SRN's test objects [3]
    # Target cameras: the other ones of the "object", an "orbit" around it, SRN's "spiral", or those of a
    # transforms.json or a folder of poses in SRN format. Of an image "object" is an orbit.
    s.cameras = "object"
    s.num_views = 8  # number of target cameras; 0 for all of the object's
    s.num_samples = 1  # sets of views per object, from other noise
    s.orbit_elevation = config_dict.placeholder(float)  # degrees; None: that of the first input view
    s.orbit_radius = 0.0  # distance to the origin, in the data's units; 0 uses that of the first input view
    s.batch_size = 8  # objects sampled in parallel; 0 for as many as fit, which the compiler is asked for
    s.weights = ""  # .safetensors file or packaged weights, instead of the workdir's checkpoints
    s.out = ""  # output folder; "" is views/step_N or views/<name of the weights> in the workdir
    s.checkpoint_step = config_dict.placeholder(int)  # None for the newest checkpoint, -1 for the best
    return s


def _evaluate() -> ml_collections.ConfigDict:
    """Evaluation [3]: sample all other views of every test object from one input view, and score them."""
    e = ml_collections.ConfigDict()
    e.input_view = 64  # number of the input view
    e.max_objects = 0  # limits evaluation to a random subset; 0 for all
    e.max_views = 0  # limits it to this many views of each object, spread evenly; 0 for all
    e.seed = 0  # of the subset of objects, and of the patch distance
    e.views = ""  # folder of existing views to score instead, from any method: DIR/<object>/000000.png
    e.inception = ""  # Inception weights file for FID; "" skips FID
    e.lpips_backbone = ""  # torchvision VGG16 weights file for LPIPS; "" (both) skips LPIPS
    e.lpips_lin = ""  # VGG weights file of the lpips package
    e.published = "none"  # published results to show alongside: "cars", "chairs", "chairs_star" or "none"
    e.out = ""  # output folder; "" is a folder in evaluation/ in the workdir, named after what is scored
    return e
