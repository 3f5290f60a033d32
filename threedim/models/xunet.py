"""The X-UNet [2.3, 6, 7.1]: a UNet that runs two frames through the same weights and lets them meet in attention.

Frame 0 is the clean view, frame 1 the noisy target; only frame 1's output is read. The frames meet only in attention,
so the network is written in two parts whose composition is the whole:

* ``encode_view`` takes one frame through the levels above the first one with attention;
* ``denoise`` takes both frames through the levels with attention, and frame 1 alone back up to the picture.

What nobody reads is thus never computed (frame 0's way up above the last attention level), and a sampler keeps what
does not change between its steps: each known view's features, and the target camera's pose embeddings.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from threedim import encodings
from threedim.cameras import Camera
from threedim.models.blocks import GroupNorm, PoseConv, ResnetBlock, XUNetBlock, fold_frames, take_frame

# Degrees of the NeRF encodings of ray origins and directions, and the channels that they make together [7.1].
ORIGIN_DEGREES, DIRECTION_DEGREES = 15, 8
POSE_CHANNELS = 3 * (1 + 2 * ORIGIN_DEGREES) + 3 * (1 + 2 * DIRECTION_DEGREES)


class ViewFeatures(NamedTuple):
    """What ``denoise`` needs to know of a clean view.

    Attributes:
      h: (batch, h, w, channel), the frame at the first level with attention.
      emb: per level from there on, (batch, h_i, w_i, emb_ch), noise-level plus pose embedding.
    """

    h: jax.Array
    emb: tuple[jax.Array, ...]


class XUNet(nn.Module):
    """3DiM's network. The defaults are the 471M model at 128 px; ``ch=448`` is the 1.3B model [7.1].

    Attributes:
      image_size: height and width of the pictures in pixels, divisible by ``2 ** (len(ch_mult) - 1)``.
      ch: channels of the first level.
      ch_mult: channels of each level as multiples of ``ch``.
      emb_ch: channels of the noise-level and pose embeddings.
      num_res_blocks: residual blocks per level on the way down; one more on the way up.
      attn_resolutions: resolutions in pixels at which blocks have attention.
      attn_heads: attention heads.
      dropout: dropout rate in training.
      remat: "none", or "blocks": of each block its input alone is kept for the gradient, and the rest computed again.
      dtype: of convolutions and matrix products. Parameters, statistics, softmax and encodings are float32 in any case.

    Raises:
      ValueError: if the image size does not halve often enough, the frames never meet, or the dropout rate is not one.
    """

    image_size: int = 128
    ch: int = 256
    ch_mult: Sequence[int] = (1, 2, 2, 4)
    emb_ch: int = 1024
    num_res_blocks: int = 3
    attn_resolutions: Sequence[int] = (8, 16, 32)
    attn_heads: int = 4
    dropout: float = 0.1
    remat: Literal["none", "blocks"] = "none"
    dtype: Any = jnp.float32

    def setup(self):
        levels = len(self.ch_mult)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.remat not in ("none", "blocks"):
            raise ValueError(f'train.remat must be "none" or "blocks", got {self.remat!r}')
        if self.image_size % 2 ** (levels - 1):
            raise ValueError(
                f"image_size {self.image_size} is not divisible by {2 ** (levels - 1)}, "
                f"which {levels} levels (ch_mult {tuple(self.ch_mult)}) need"
            )
        resolutions = [self.image_size >> level for level in range(levels)]
        attention = [resolution in tuple(self.attn_resolutions) for resolution in resolutions]
        if not any(attention):
            raise ValueError(
                f"the frames never meet: attn_resolutions {tuple(self.attn_resolutions)} has none of the "
                f"network's resolutions {tuple(resolutions)}"
            )
        self.meet = attention.index(True)

        self.logsnr_dense1 = nn.Dense(self.emb_ch, dtype=self.dtype)
        self.logsnr_dense2 = nn.Dense(self.emb_ch, dtype=self.dtype)
        init = nn.initializers.normal(stddev=POSE_CHANNELS**-0.5)
        self.position_emb = self.param("position_emb", init, (self.image_size, self.image_size, POSE_CHANNELS))
        self.frame_emb = self.param("frame_emb", init, (2, POSE_CHANNELS))
        self.pose_convs = [PoseConv(self.emb_ch, 1 << level, self.dtype) for level in range(levels)]

        # The argument that is no array is ``train``; the module itself counts as the first.
        remat = functools.partial(nn.remat, static_argnums=(3,)) if self.remat == "blocks" else lambda module: module

        def block(level: int) -> XUNetBlock:
            features = self.ch * self.ch_mult[level]
            return remat(XUNetBlock)(features, attention[level], self.attn_heads, self.dropout, self.dtype)

        def resample(direction: str) -> ResnetBlock:
            return remat(ResnetBlock)(None, direction, self.dropout, self.dtype)

        self.conv_in = nn.Conv(self.ch, (3, 3), dtype=self.dtype)
        self.down_blocks = [[block(level) for _ in range(self.num_res_blocks)] for level in range(levels)]
        self.down_samples = [resample("down") for _ in range(levels - 1)]  # from level i to i + 1
        self.mid_block = block(levels - 1)
        self.up_blocks = [[block(level) for _ in range(self.num_res_blocks + 1)] for level in range(levels)]
        self.up_samples = [resample("up") for _ in range(levels - 1)]  # from level i + 1 to i
        self.norm_out = GroupNorm(dtype=self.dtype)
        self.conv_out = nn.Conv(3, (3, 3), dtype=jnp.float32, kernel_init=nn.initializers.zeros)

    def __call__(
        self, x: jax.Array, z: jax.Array, logsnr: jax.Array, camera: Camera, cond_mask: jax.Array, *, train: bool
    ) -> jax.Array:
        """The network's output for the noisy frame: the composition of the two parts.

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
        view = self.encode_view(x, logsnr[:, 0], camera[:, 0], cond_mask, train=train)
        target = self.embed_camera(camera[:, 1], cond_mask, frame=1)
        return self.denoise(z, logsnr[:, 1], target, view, train=train)

    def embed_camera(self, camera: Camera, cond_mask: jax.Array, *, frame: int) -> tuple[jax.Array, ...]:
        """Pose embeddings of one frame, per level (batch, h_i, w_i, emb_ch).

        Args:
          camera: cameras with axes (batch,).
          cond_mask: (batch,) bool; where False the ray encodings are zero (the learned embeddings stay).
          frame: 0 for the clean view, 1 for the target.
        """
        origin, direction = camera.rays(self.image_size, self.image_size)
        pose = jnp.concatenate(
            [
                encodings.posenc_nerf(origin, 0, ORIGIN_DEGREES),
                encodings.posenc_nerf(direction, 0, DIRECTION_DEGREES),
            ],
            axis=-1,
        )
        pose = jnp.where(cond_mask[:, None, None, None], pose, 0.0)
        learned = (self.position_emb + self.frame_emb[frame])[None]
        return tuple(conv(pose, learned) for conv in self.pose_convs)

    def embed_logsnr(self, logsnr: jax.Array) -> jax.Array:
        """Noise-level embedding, (batch,) to (batch, 1, 1, emb_ch)."""
        u = (2.0 / jnp.pi) * jnp.arctan(jnp.exp(-0.5 * jnp.clip(logsnr, -20.0, 20.0)))
        emb = self.logsnr_dense1(encodings.posenc_ddpm(u, self.emb_ch))
        return self.logsnr_dense2(nn.swish(emb))[:, None, None, :]

    def encode_view(
        self, x: jax.Array, logsnr: jax.Array, camera: Camera, cond_mask: jax.Array, *, train: bool
    ) -> ViewFeatures:
        """Features of clean views (frame 0): all that ``denoise`` reads of them.

        Args:
          x: (batch, height, width, 3) in [-1, 1].
          logsnr: (batch,); logsnr_max for a clean view.
          camera: cameras with axes (batch,).
          cond_mask: (batch,) bool.
          train: whether dropout is active.
        """
        noise_emb = self.embed_logsnr(logsnr)
        emb = tuple(noise_emb + pose for pose in self.embed_camera(camera, cond_mask, frame=0))
        h, _ = self._descend(x, emb, train)
        return ViewFeatures(h, emb[self.meet :])

    def denoise(
        self, z: jax.Array, logsnr: jax.Array, target: tuple[jax.Array, ...], view: ViewFeatures, *, train: bool
    ) -> jax.Array:
        """The network's output for noisy targets, given the features of one clean view each.

        Args:
          z: (batch, height, width, 3).
          logsnr: (batch,).
          target: pose embeddings of the target cameras, from ``embed_camera(..., frame=1)``.
          view: from ``encode_view``.
          train: whether dropout is active.

        Returns:
          (batch, height, width, 3), float32.
        """
        levels, meet = len(self.ch_mult), self.meet
        noise_emb = self.embed_logsnr(logsnr)
        emb = tuple(noise_emb + pose for pose in target)
        h, skips = self._descend(z, emb, train)

        # From here both frames run together, down to the middle and back up to the first level where they met.
        h = fold_frames(view.h, h)
        both = {level: fold_frames(view.emb[level - meet], emb[level]) for level in range(meet, levels)}
        joint = [h]
        for level in range(meet, levels):
            if level > meet:
                h = self.down_samples[level - 1](h, both[level], train)
                joint.append(h)
            for block in self.down_blocks[level]:
                h = block(h, both[level], train)
                joint.append(h)
        h = self.mid_block(h, both[levels - 1], train)
        for level in reversed(range(meet, levels)):
            for block in self.up_blocks[level]:
                h = block(jnp.concatenate([h, joint.pop()], axis=-1), both[level], train)
            if level > meet:
                h = self.up_samples[level - 1](h, both[level - 1], train)

        # The clean frame has done its work.
        h = take_frame(h, 1)
        for level in reversed(range(meet)):
            h = self.up_samples[level](h, emb[level], train)
            for block in self.up_blocks[level]:
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), emb[level], train)
        return self.conv_out(nn.swish(self.norm_out(h)).astype(jnp.float32))

    def _descend(self, x: jax.Array, emb: tuple[jax.Array, ...], train: bool) -> tuple[jax.Array, list[jax.Array]]:
        """One frame from the picture to the first level with attention, and what its way up will concatenate."""
        h = self.conv_in(x)
        skips = []
        for level in range(self.meet):
            skips.append(h)
            for block in self.down_blocks[level]:
                h = block(h, emb[level], train)
                skips.append(h)
            h = self.down_samples[level](h, emb[level + 1], train)
        return h, skips


@dataclasses.dataclass(frozen=True)
class XUNetDenoiser:
    """An X-UNet as the sampler wants it (``threedim.sampling.Denoiser``)."""

    network: XUNet
    relative_poses: bool = False

    def encode_view(self, params, x, logsnr, camera, cond_mask) -> ViewFeatures:
        return self.network.apply({"params": params}, x, logsnr, camera, cond_mask, train=False, method="encode_view")

    def embed_camera(self, params, camera, cond_mask) -> tuple[jax.Array, ...]:
        return self.network.apply({"params": params}, camera, cond_mask, frame=1, method="embed_camera")

    def denoise(self, params, z, logsnr, target, view) -> jax.Array:
        return self.network.apply({"params": params}, z, logsnr, target, view, train=False, method="denoise")
