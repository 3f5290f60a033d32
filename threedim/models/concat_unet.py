"""The Concat-UNet [3.2], an ablation: one ordinary UNet on the clean view and the noisy target, stacked along channels.

Channels, blocks and their order are the X-UNet's; attention is self-attention alone, so that the frames meet in the
first convolution and nowhere else. So do the cameras: the ray encodings of both frames, each with the learned position
embedding and its own frame embedding, are stacked along channels, too. It is told the noise level of the target.

By linearity, a convolution of stacked channels is the sum of one share for each frame. A sampler keeps the share of a
known view, and that of a target camera.

At the paper's size it has 426,011,939 parameters: the X-UNet's, less those of cross-attention, is 420,696,611 (the
paper's 421M); the first convolutions' channels for the second frame make up the rest.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from threedim.models.layers import conv3x3, frame_share
from threedim.models.unet import UNet


class ViewShare(NamedTuple):
    """What a clean view adds to the sums in ``denoise``.

    Attributes:
      h: (batch, height, width, ch), its share of the first convolution.
      pose: per level, (batch, h_i, w_i, emb_ch), its share of the pose embedding.
    """

    h: jax.Array
    pose: tuple[jax.Array, ...]


class StackedConv(nn.Module):
    """One frame's share of a convolution 3x3 of two frames stacked along channels; that of frame 1 has the bias.

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
        del logsnr, train  # the frames share one noise level, the target's; there is no dropout before they meet
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
