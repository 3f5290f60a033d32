"""The common part of 3DiM's networks: settings, layers, embeddings, and the order of blocks [7.1].

A network takes a clean view (frame 0) and a noisy target (frame 1). It is a composition of parts, so that a sampler can
reuse what does not change between its steps:

* ``embed_camera`` computes the pose embeddings of a camera;
* ``encode_view`` computes everything that ``denoise`` needs of a known view;
* ``denoise`` computes the rest, at every step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from threedim import encodings
from threedim.cameras import Camera
from threedim.models.layers import GroupNorm, PoseConv, ResnetBlock, XUNetBlock, last_init
from threedim.models.ops import Attention

PyTree = Any

# Degrees of the NeRF encodings of ray origins and directions, and the channels that they make together [7.1].
ORIGIN_DEGREES, DIRECTION_DEGREES = 15, 8
POSE_CHANNELS = 3 * (1 + 2 * ORIGIN_DEGREES) + 3 * (1 + 2 * DIRECTION_DEGREES)


class UNet(nn.Module):
    """Base class of the networks. The defaults are the 471M model at 128 px; ``ch=448`` is the 1.3B model [7.1].

    Attributes:
      image_size: height and width of the pictures in pixels, divisible by ``2 ** (len(ch_mult) - 1)``.
      ch: channels of the first level.
      ch_mult: channels of each level, as multiples of ``ch``.
      emb_ch: channels of the noise-level and pose embeddings.
      num_res_blocks: residual blocks per level on the way down; one more on the way up.
      attn_resolutions: resolutions in pixels at which blocks have attention.
      attn_heads: attention heads.
      norm_groups: number of groups of the normalizations. With one channel per group, normalization removes the
        brightness and color of an image.
      zero_init: whether the last convolution and the last projection of each attention start at zero [7.1].
      dropout: dropout rate in training.
      attention: how attention is computed, see `ops.attend`.
      remat: rematerialization. "none" keeps all activations for the gradient; "blocks" keeps the input of each block
        and recomputes the rest; "all" keeps the inputs of each level's sequence of blocks only.
      dtype: of convolutions and matrix products. Parameters, statistics, softmax and encodings are always float32.

    Raises:
      ValueError: if the image size or the channels do not divide, the dropout rate is out of range, or ``attention`` or
        ``remat`` is unknown.
    """

    image_size: int = 128
    ch: int = 256
    ch_mult: Sequence[int] = (1, 2, 2, 4)
    emb_ch: int = 1024
    num_res_blocks: int = 3
    attn_resolutions: Sequence[int] = (8, 16, 32)
    attn_heads: int = 4
    norm_groups: int = 32
    zero_init: bool = True
    dropout: float = 0.1
    attention: Attention = "auto"
    remat: Literal["none", "blocks", "all"] = "none"
    dtype: Any = jnp.float32

    # Whether the frames are stacked along channels, instead of meeting in cross-attention.
    stacked: ClassVar[bool]

    def __post_init__(self):
        super().__post_init__()
        levels = len(self.ch_mult)
        lowest = {"image_size": 1, "ch": 1, "emb_ch": 1, "num_res_blocks": 0, "attn_heads": 1, "norm_groups": 1}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if not levels or min(self.ch_mult) < 1:
            raise ValueError(f"ch_mult must be one positive number per level, got {tuple(self.ch_mult)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        for name, known in (("attention", get_args(Attention)), ("remat", ("none", "blocks", "all"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.image_size % 2 ** (levels - 1):
            raise ValueError(
                f"image_size {self.image_size} is not divisible by {2 ** (levels - 1)}, "
                f"which {levels} levels (ch_mult {tuple(self.ch_mult)}) need"
            )
        for width in (self.ch * mult for mult, attends in zip(self.ch_mult, self.attends, strict=True) if attends):
            if width % self.attn_heads:
                raise ValueError(f"{width} channels do not divide into attn_heads {self.attn_heads}")

    def setup(self):
        levels, attends = len(self.ch_mult), self.attends
        self.logsnr_dense1 = nn.Dense(self.emb_ch, dtype=self.dtype)
        self.logsnr_dense2 = nn.Dense(self.emb_ch, dtype=self.dtype)
        init = nn.initializers.normal(stddev=POSE_CHANNELS**-0.5)
        self.position_emb = self.param("position_emb", init, (self.image_size, self.image_size, POSE_CHANNELS))
        self.frame_emb = self.param("frame_emb", init, (2, POSE_CHANNELS))
        self.pose_convs = [
            PoseConv(POSE_CHANNELS, self.emb_ch, 1 << level, self.dtype, self.stacked) for level in range(levels)
        ]

        # Argument 3 is ``train``; argument 0 is the module.
        remat = functools.partial(nn.remat, static_argnums=(3,)) if self.remat != "none" else lambda module: module

        def block(level: int) -> XUNetBlock:
            features, cross = self.ch * self.ch_mult[level], not self.stacked
            return remat(XUNetBlock)(
                features,
                attends[level],
                self.attn_heads,
                self.dropout,
                self.dtype,
                cross,
                self.norm_groups,
                self.zero_init,
                self.attention,
            )

        def resample(direction: str) -> ResnetBlock:
            return remat(ResnetBlock)(None, direction, self.dropout, self.dtype, self.norm_groups)

        self.conv_in = self.first_conv()
        self.down_blocks = [[block(level) for _ in range(self.num_res_blocks)] for level in range(levels)]
        self.down_samples = [resample("down") for _ in range(levels - 1)]  # from level i to i + 1
        self.mid_block = block(levels - 1)
        self.up_blocks = [[block(level) for _ in range(self.num_res_blocks + 1)] for level in range(levels)]
        self.up_samples = [resample("up") for _ in range(levels - 1)]  # from level i + 1 to i
        self.norm_out = GroupNorm(self.dtype, self.norm_groups)
        self.conv_out = nn.Conv(3, (3, 3), dtype=jnp.float32, kernel_init=last_init(self.zero_init))

    @property
    def resolutions(self) -> list[int]:
        """Height and width in pixels of each level."""
        return [self.image_size >> level for level in range(len(self.ch_mult))]

    @property
    def attends(self) -> list[bool]:
        """Whether the blocks of each level have attention."""
        return [resolution in tuple(self.attn_resolutions) for resolution in self.resolutions]

    def first_conv(self) -> nn.Module:
        """The first convolution."""
        raise NotImplementedError

    def encode_view(self, x: jax.Array, logsnr: jax.Array, pose: tuple[jax.Array, ...], *, train: bool) -> PyTree:
        """Features of clean views (frame 0) for ``denoise``.

        Args:
          x: (batch, height, width, 3) in [-1, 1].
          logsnr: (batch,); logsnr_max for a clean view.
          pose: pose embeddings of their cameras, from ``embed_camera(..., frame=0)``.
          train: whether dropout is active.
        """
        raise NotImplementedError

    def denoise(
        self, z: jax.Array, logsnr: jax.Array, target: tuple[jax.Array, ...], view: PyTree, *, train: bool
    ) -> jax.Array:
        """The network's output for noisy targets, each given the features of one clean view.

        Args:
          z: (batch, height, width, 3).
          logsnr: (batch,).
          target: pose embeddings of the target cameras, from ``embed_camera(..., frame=1)``.
          view: from ``encode_view``.
          train: whether dropout is active.

        Returns:
          (batch, height, width, 3), float32.
        """
        raise NotImplementedError

    def __call__(
        self, x: jax.Array, z: jax.Array, logsnr: jax.Array, camera: Camera, cond_mask: jax.Array, *, train: bool
    ) -> jax.Array:
        """The network's output for the noisy frame.

        Args:
          x: clean views, (batch, height, width, 3) in [-1, 1].
          z: noisy targets, same shape.
          logsnr: log signal-to-noise ratio of both frames, (batch, 2).
          camera: cameras of both frames, axes (batch, 2).
          cond_mask: (batch,) bool; False makes the pair unconditional by zeroing both pose encodings.
          train: whether dropout is active (it takes its key from the "dropout" stream).

        Returns:
          (batch, height, width, 3), float32.
        """
        # Frames that share a kernel share the convolved position embedding, and its gradient.
        positions = None if self.stacked else self.embed_positions(0)
        pose, target = (self.embed_camera(camera[:, f], cond_mask, positions, frame=f) for f in range(2))
        view = self.encode_view(x, logsnr[:, 0], pose, train=train)
        return self.denoise(z, logsnr[:, 1], target, view, train=train)

    def embed_positions(self, frame: int) -> tuple[jax.Array, ...]:
        """The part of the pose embeddings that does not depend on a camera, per level (1, h_i, w_i, emb_ch).

        It is the same for both frames, unless they are stacked.
        """
        return tuple(conv.position(self.position_emb[None], frame) for conv in self.pose_convs)

    def embed_camera(
        self, camera: Camera, cond_mask: jax.Array, positions: tuple[jax.Array, ...] | None = None, *, frame: int
    ) -> tuple[jax.Array, ...]:
        """Pose embeddings of one frame, per level (batch, h_i, w_i, emb_ch).

        Args:
          camera: cameras with axes (batch,).
          cond_mask: (batch,) bool; where False the ray encodings are zero (the learned embeddings stay).
          positions: from ``embed_positions``; computed if None.
          frame: 0 for the clean view, 1 for the target.
        """
        # All rays of a camera start at its center.
        origin = encodings.posenc_nerf(camera.t, 0, ORIGIN_DEGREES)
        direction = encodings.posenc_nerf(camera.rays(self.image_size, self.image_size)[1], 0, DIRECTION_DEGREES)
        direction = jnp.where(cond_mask[:, None, None, None], direction, 0.0)
        constant = jnp.pad(jnp.where(cond_mask[:, None], origin, 0.0), ((0, 0), (0, direction.shape[-1])))
        constant += self.frame_emb[frame]
        positions = self.embed_positions(frame) if positions is None else positions
        return tuple(
            conv(constant, direction, position, frame)
            for conv, position in zip(self.pose_convs, positions, strict=True)
        )

    def embed_logsnr(self, logsnr: jax.Array) -> jax.Array:
        """Noise-level embedding, (batch,) to (batch, 1, 1, emb_ch)."""
        u = (2.0 / jnp.pi) * jnp.arctan(jnp.exp(-0.5 * jnp.clip(logsnr, -20.0, 20.0)))
        emb = self.logsnr_dense1(encodings.posenc_ddpm(u, self.emb_ch))
        return self.logsnr_dense2(nn.swish(emb))[:, None, None, :]

    def descend(
        self, h: jax.Array, emb: Sequence[jax.Array], levels: range, train: bool
    ) -> tuple[jax.Array, list[jax.Array]]:
        """The way down through ``levels``: the result, and the skip connections, the first of which is ``h``.

        ``emb[i]`` is the embedding of level i.
        """
        skips = [h]
        for level in levels:
            skips += self._run(UNet._level_down, (skips[-1], emb[level]), (level, level > levels.start, train))
        return skips[-1], skips

    def ascend(
        self, h: jax.Array, emb: Sequence[jax.Array], levels: range, skips: list[jax.Array], train: bool
    ) -> jax.Array:
        """The way up through ``levels``; consumes the ``skips`` of ``descend``."""
        for level in reversed(levels):
            taken = [skips.pop() for _ in self.up_blocks[level]]
            further = level > levels.start
            embs = emb[level], emb[level - 1] if further else None
            h = self._run(UNet._level_up, (h, taken, embs), (level, further, train))
        return h

    def _run(self, blocks: Callable[..., PyTree], arrays: tuple[PyTree, ...], rest: tuple[int, bool, bool]) -> PyTree:
        """Runs the blocks of a level. With remat "all" only ``arrays`` are kept for the gradient."""
        if self.remat == "all":
            static = range(1 + len(arrays), 1 + len(arrays) + len(rest))  # argument 0 is the module
            blocks = nn.remat(blocks, static_argnums=tuple(static))
        return blocks(self, *arrays, *rest)

    def _level_down(self, h: jax.Array, emb: jax.Array, level: int, resample: bool, train: bool) -> list[jax.Array]:
        """The outputs of the downsampling to this level, with ``resample``, and of each of its blocks."""
        out = []
        if resample:
            h = self.down_samples[level - 1](h, emb, train)
            out.append(h)
        for block in self.down_blocks[level]:
            h = block(h, emb, train)
            out.append(h)
        return out

    def _level_up(
        self,
        h: jax.Array,
        skips: list[jax.Array],
        emb: tuple[jax.Array, jax.Array | None],
        level: int,
        resample: bool,
        train: bool,
    ) -> jax.Array:
        """The blocks of this level and, with ``resample``, the upsampling to the next one, whose ``emb`` is second."""
        for block, skip in zip(self.up_blocks[level], skips, strict=True):
            h = block(jnp.concatenate([h, skip], axis=-1), emb[0], train)
        return self.up_samples[level - 1](h, emb[1], train) if resample else h

    def put_out(self, h: jax.Array) -> jax.Array:
        """The last normalization and convolution, float32."""
        return self.conv_out(nn.swish(self.norm_out(h)).astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class NetworkDenoiser:
    """A network with the interface of ``threedim.sampling.Denoiser``."""

    network: UNet
    relative_poses: bool = False

    def encode_view(self, params, x, logsnr, camera, cond_mask) -> PyTree:
        def encode(network: UNet) -> PyTree:
            pose = network.embed_camera(camera, cond_mask, frame=0)
            return network.encode_view(x, logsnr, pose, train=False)

        return self.network.apply({"params": params}, method=encode)

    def embed_positions(self, params) -> tuple[jax.Array, ...]:
        return self.network.apply({"params": params}, 1, method="embed_positions")

    def embed_camera(self, params, camera, cond_mask, positions=None) -> tuple[jax.Array, ...]:
        return self.network.apply({"params": params}, camera, cond_mask, positions, frame=1, method="embed_camera")

    def denoise(self, params, z, logsnr, target, view) -> jax.Array:
        return self.network.apply({"params": params}, z, logsnr, target, view, train=False, method="denoise")
