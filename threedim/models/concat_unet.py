"""The Concat-UNet [3.2], an ablation: an ordinary UNet on the clean view and the noisy target, stacked along channels.

Channels, blocks and their order are those of the X-UNet; attention is self-attention alone, so the frames meet only in
the first convolution. The cameras meet the same way: the ray encodings of both frames, each with the learned position
embedding and its frame embedding, are stacked along channels. The noise level is that of the target.

By linearity, a convolution of stacked channels is a sum with one term per frame. A sampler computes the terms of a
known view and of a target camera once.

At the paper's size it has 426,011,939 parameters. The X-UNet without cross-attention has 420,696,611 (the paper's
421M); the rest are the first convolutions' channels for the second frame.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from threedim.models.layers import frame_share
from threedim.models.ops import conv3x3
from threedim.models.unet import UNet


class ViewShare(NamedTuple):
    """The terms of a clean view in ``denoise``.

    Attributes:
      h: (batch, height, width, ch), its term of the first convolution.
      pose: per level, (batch, h_i, w_i, emb_ch), its term of the pose embedding.
    """

    h: jax.Array
    pose: tuple[jax.Array, ...]


class StackedConv(nn.Module):
    """One frame's term of a 3x3 convolution of two frames stacked along channels; that of frame 1 has the bias.

    Takes (batch, height, width, channel) to (batch, height, width, ``features``).
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, frame: int) -> jax.Array:
        shape = (3, 3, 2 * x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        share = conv3x3(x.astype(self.dtype), frame_share(kernel, frame), 1)
        return share + bias if frame == 1 else share


class ConcatUNet(UNet):
    """The Concat-UNet; attributes and defaults are those of ``UNet``."""

    stacked: ClassVar[bool] = True

    def first_conv(self) -> StackedConv:
        return StackedConv(self.ch, self.dtype)

    def encode_view(self, x: jax.Array, logsnr: jax.Array, pose: tuple[jax.Array, ...], *, train: bool) -> ViewShare:
        del logsnr, train  # the noise level is the target's; there is no dropout before the frames meet
        return ViewShare(self.conv_in(x, 0), pose)

    def denoise(
        self, z: jax.Array, logsnr: jax.Array, target: tuple[jax.Array, ...], view: ViewShare, *, train: bool
    ) -> jax.Array:
        levels = range(len(self.ch_mult))
        noise_emb = self.embed_logsnr(logsnr)
        emb = [noise_emb + (ours + theirs) for ours, theirs in zip(target, view.pose, strict=True)]
        h, skips = self.descend(view.h + self.conv_in(z, 1), emb, levels, train)
        h = self.mid_block(h, emb[-1], train)
        return self.put_out(self.ascend(h, emb, levels, skips, train))
