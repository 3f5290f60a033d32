"""The X-UNet [2.3, 6, 7.1]: a UNet that runs two frames through the same weights, with cross-attention between them.

Frame 0 is the clean view, frame 1 the noisy target; only frame 1's output is used. The frames meet only in attention,
so the network has two parts:

* ``encode_view`` takes one frame through the levels above the first one with attention;
* ``denoise`` takes both frames through the levels with attention, and frame 1 alone back up to the output.

Frame 0's way up above the attention levels, which nothing reads, is never computed, and a sampler computes once what
does not change between its steps: the features of each known view, and the pose embeddings of the target camera.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax

from threedim.models.layers import fold_frames, take_frame
from threedim.models.unet import UNet


class ViewFeatures(NamedTuple):
    """Features of a clean view for ``denoise``.

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
      ValueError: as for ``UNet``, and if no level has attention, so that the frames never meet.
    """

    stacked: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        if not any(self.attends):
            raise ValueError(
                f"the frames never meet: attn_resolutions {tuple(self.attn_resolutions)} has none of the "
                f"network's resolutions {tuple(self.resolutions)}"
            )

    @property
    def meet(self) -> int:
        """The first level at which the frames meet."""
        return self.attends.index(True)

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

        # Both frames together, down to the middle and back up to the first level with attention.
        both = {level: fold_frames(view.emb[level - meet], emb[level]) for level in together}
        h, joint = self.descend(fold_frames(view.h, h), both, together, train)
        h = self.mid_block(h, both[together[-1]], train)
        h = self.ascend(h, both, together, joint, train)

        h = take_frame(h, 1)
        if meet:
            h = self.up_samples[meet - 1](h, emb[meet - 1], train)
            h = self.ascend(h, emb, alone, skips, train)
        return self.put_out(h)

    def _to_meeting(self, x: jax.Array, emb: tuple[jax.Array, ...], train: bool) -> tuple[jax.Array, list[jax.Array]]:
        """One frame from the image to the first level with attention, and its skip connections."""
        h, skips = self.descend(self.conv_in(x), emb, range(self.meet), train)
        if self.meet:
            h = self.down_samples[self.meet - 1](h, emb[self.meet], train)
        return h, skips
