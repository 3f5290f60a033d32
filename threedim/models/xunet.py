"""The X-UNet [2.3, 6, 7.1]: a UNet that runs two frames through the same weights and lets them meet in attention.

Frame 0 is the clean view, frame 1 the noisy target; only frame 1's output is read. The frames meet only in attention,
so the network is written in two parts whose composition is the whole:

* ``encode_view`` takes one frame through the levels above the first one with attention;
* ``denoise`` takes both frames through the levels with attention, and frame 1 alone back up to the picture.

What nobody reads is thus never computed (frame 0's way up above the last attention level), and a sampler keeps what
does not change between its steps: each known view's features, and the target camera's pose embeddings.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax

from threedim.models.layers import fold_frames, take_frame
from threedim.models.unet import UNet


class ViewFeatures(NamedTuple):
    """What ``denoise`` needs to know of a clean view.

    Attributes:
      h: (batch, h, w, channel), the frame at the first level with attention.
      emb: per level from there on, (batch, h_i, w_i, emb_ch), noise-level plus pose embedding.
    """

    h: jax.Array
    emb: tuple[jax.Array, ...]


class XUNet(UNet):
    """3DiM's network. The defaults are the 471M model at 128 px; ``ch=448`` is the 1.3B model [7.1].

    Attributes are those of ``UNet``; at ``attn_resolutions`` the frames meet.

    Raises:
      ValueError: if the image size does not halve often enough, the frames never meet, or the dropout rate is not one.
    """

    stacked: ClassVar[bool] = False

    def setup(self):
        super().setup()
        attention = [resolution in tuple(self.attn_resolutions) for resolution in self.resolutions]
        if not any(attention):
            raise ValueError(
                f"the frames never meet: attn_resolutions {tuple(self.attn_resolutions)} has none of the "
                f"network's resolutions {tuple(self.resolutions)}"
            )
        self.meet = attention.index(True)

    def first_conv(self) -> nn.Conv:
        return nn.Conv(self.ch, (3, 3), dtype=self.dtype)

    def encode_view(self, x: jax.Array, logsnr: jax.Array, pose: tuple[jax.Array, ...], *, train: bool) -> ViewFeatures:
        noise_emb = self.embed_logsnr(logsnr)
        emb = tuple(noise_emb + p for p in pose)
        h, _ = self._to_meeting(x, emb, train)
        return ViewFeatures(h, emb[self.meet :])

    def denoise(
        self, z: jax.Array, logsnr: jax.Array, target: tuple[jax.Array, ...], view: ViewFeatures, *, train: bool
    ) -> jax.Array:
        meet = self.meet
        alone, together = range(meet), range(meet, len(self.ch_mult))
        noise_emb = self.embed_logsnr(logsnr)
        emb = tuple(noise_emb + pose for pose in target)
        h, skips = self._to_meeting(z, emb, train)

        # From here both frames run together, down to the middle and back up to the first level where they met.
        both = {level: fold_frames(view.emb[level - meet], emb[level]) for level in together}
        h, joint = self.descend(fold_frames(view.h, h), both, together, train)
        h = self.mid_block(h, both[together[-1]], train)
        h = self.ascend(h, both, together, joint, train)

        # The clean frame has done its work.
        h = take_frame(h, 1)
        if meet:
            h = self.up_samples[meet - 1](h, emb[meet - 1], train)
            h = self.ascend(h, emb, alone, skips, train)
        return self.put_out(h)

    def _to_meeting(self, x: jax.Array, emb: tuple[jax.Array, ...], train: bool) -> tuple[jax.Array, list[jax.Array]]:
        """One frame from the picture to the first level with attention, and what its way up will concatenate."""
        h, skips = self.descend(self.conv_in(x), emb, range(self.meet), train)
        if self.meet:
            h = self.down_samples[self.meet - 1](h, emb[self.meet], train)
        return h, skips
