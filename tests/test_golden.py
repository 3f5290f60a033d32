"""The network and its encodings against numbers that an independent implementation computed."""

import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from threedim.cameras import Camera
from threedim.diffusion import logsnr_schedule
from threedim.encodings import posenc_ddpm, posenc_nerf
from threedim.models.xunet import XUNet
from threedim.training.step import abstract_params

GOLDEN = pathlib.Path(__file__).parent / "golden"
NETWORKS = sorted(GOLDEN.glob("xunet_*.npz"))
if "THREEDIM_GOLDEN" in os.environ:
    NETWORKS += sorted(pathlib.Path(os.environ["THREEDIM_GOLDEN"]).glob("xunet_*.npz"))


def golden_name(path: str, config: dict) -> str:
    """The golden file's path of one of our parameters: modules of a kind are numbered in the order of their making."""
    levels, blocks = len(config["ch_mult"]), config["num_res_blocks"]
    head, *rest = path.split("/")
    tail = "/".join(rest)
    if match := re.fullmatch(r"(down|up)_blocks_(\d+)_(\d+)", head):
        level, index = int(match[2]), int(match[3])
        if match[1] == "down":
            number = level * blocks + index
        else:
            number = levels * blocks + 1 + (levels - 1 - level) * (blocks + 1) + index
        head = f"XUNetBlock_{number}"
    elif match := re.fullmatch(r"(down|up)_samples_(\d+)", head):
        level = int(match[2])
        head = f"ResnetBlock_{level if match[1] == 'down' else levels - 1 + (levels - 2 - level)}"
    elif match := re.fullmatch(r"pose_convs_(\d+)", head):
        head = f"ConditioningProcessor_0/Conv_{match[1]}"
    else:
        head = {
            "mid_block": f"XUNetBlock_{levels * blocks}",
            "conv_in": "Conv_0",
            "conv_out": "Conv_1",
            "norm_out": "GroupNorm_0",
            "logsnr_dense1": "ConditioningProcessor_0/Dense_0",
            "logsnr_dense2": "ConditioningProcessor_0/Dense_1",
            "position_emb": "ConditioningProcessor_0/pos_emb",
        }[head]
    replacements = {
        "res/": "ResnetBlock_0/",
        "attn_self/": "AttnBlock_0/",
        "attn_cross/": "AttnBlock_1/",
        "query/": "AttnLayer_0/DenseGeneral_0/",
        "key/": "AttnLayer_0/DenseGeneral_1/",
        "value/": "AttnLayer_0/DenseGeneral_2/",
        "out/": "DenseGeneral_0/",
        "conv1/": "Conv_0/",
        "conv2/": "Conv_1/",
        "norm1/": "GroupNorm_0/GroupNorm_0/",
        "norm2/": "GroupNorm_1/GroupNorm_0/",
        "norm/": "GroupNorm_0/GroupNorm_0/",
        "film/dense/": "FiLM_0/Dense_0/",
        "shortcut/": "Dense_0/",
    }
    for ours, theirs in replacements.items():
        tail = re.sub(rf"(^|/){ours}", rf"\g<1>{theirs}", tail)
    if head == "GroupNorm_0":
        tail = f"GroupNorm_0/{tail}"
    return f"{head}/{tail}" if tail else head


def load_params(golden: dict, prefix: str, shapes: dict, config: dict) -> dict:
    """Our parameter tree filled from the golden arrays; fails on any array left over on either side."""
    left = {name.removeprefix(prefix) for name in golden if name.startswith(prefix)}
    filled = {}
    for path, shape in traverse_util.flatten_dict(shapes, sep="/").items():
        if path == "frame_emb":
            names = [f"ConditioningProcessor_0/ref_pose_emb_{which}" for which in ("first", "other")]
            filled[path] = np.stack([golden[prefix + name] for name in names])
        else:
            names = [golden_name(path, config)]
            filled[path] = golden[prefix + names[0]]
        if filled[path].ndim:
            filled[path] = filled[path].reshape(shape.shape)
        left -= set(names)
    assert not left, f"golden arrays without a place in our network: {sorted(left)}"
    return traverse_util.unflatten_dict(filled, sep="/")


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_network_matches_golden(path):
    golden = dict(np.load(path))
    config = {name.removeprefix("config/"): value.tolist() for name, value in golden.items() if "config/" in name}
    x, z = golden["in/x"], golden["in/z"]
    camera = Camera(golden["in/R"], golden["in/t"], np.repeat(golden["in/K"][:, None], 2, axis=1))
    network = XUNet(image_size=x.shape[1], dropout=0.0, **config)
    inputs = jax.tree.map(jnp.asarray, (x, z, golden["in/logsnr"], camera, golden["in/cond_mask"]))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs, train=False))["params"]
    params = load_params(golden, "param/", shapes, config)

    def loss_fn(params):
        eps = network.apply({"params": params}, *inputs, train=False)
        return jnp.mean((eps - golden["in/target"]) ** 2), eps

    with jax.default_matmul_precision("highest"):
        (loss, eps), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    np.testing.assert_allclose(eps, golden["out/eps"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(loss, golden["out/loss"], atol=1e-5, rtol=0)

    grads = traverse_util.flatten_dict(grads, sep="/")
    norms = {golden_name(name, config): np.linalg.norm(g) for name, g in grads.items() if name != "frame_emb"}
    for index, which in enumerate(("first", "other")):
        norms[f"ConditioningProcessor_0/ref_pose_emb_{which}"] = np.linalg.norm(grads["frame_emb"][index])
    expected = {name.removeprefix("grad_norm/"): g for name, g in golden.items() if name.startswith("grad_norm/")}
    assert norms.keys() == expected.keys()
    # The keys' bias shifts all logits of a query alike, so its gradient is rounding alone.
    floor = 1e-6 * max(expected.values())
    wrong = {n: (norms[n], g) for n, g in expected.items() if abs(norms[n] - g) > 0.01 * g + floor}
    assert not wrong


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_rays_match_golden(convert):
    golden = np.load(GOLDEN / "rays_and_encodings.npz")
    camera = Camera(golden["R"], golden["t"], np.broadcast_to(golden["K"], (3, 3, 3)))
    origin, direction = jax.tree.map(convert, camera).rays(*golden["resolution"])
    np.testing.assert_allclose(origin, golden["ray_pos"], atol=1e-6)
    np.testing.assert_allclose(direction, golden["ray_dir"], atol=1e-6)


def test_encodings_match_golden():
    golden = np.load(GOLDEN / "rays_and_encodings.npz")
    posenc_in = jnp.asarray(golden["posenc_in"])
    np.testing.assert_allclose(posenc_nerf(posenc_in, 0, 15), golden["posenc_0_15"], atol=1e-5)
    np.testing.assert_allclose(posenc_nerf(posenc_in, 0, 8), golden["posenc_0_8"], atol=1e-5)
    np.testing.assert_allclose(posenc_ddpm(jnp.asarray(golden["ddpm_in"]), 32), golden["ddpm_32"], atol=1e-4)
    np.testing.assert_allclose(logsnr_schedule(jnp.asarray(golden["logsnr_t"])), golden["logsnr"], atol=2e-3)


@pytest.mark.slow
def test_parameter_count_of_the_larger_model():
    """As the published listing counts [6]; test_concat_unet.py counts the smaller model."""
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract_params(XUNet(ch=448)))) == 1_338_179_555
