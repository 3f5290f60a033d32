"""Videos that every browser and program plays."""

from __future__ import annotations

import io

import av
import numpy as np
from etils import epath

from threedim import files
from threedim.output.sheets import checked_frames, enlarge

_SECONDS = 4.0
_MIN_SIZE = 256  # players blur what is smaller


def save_mp4(path: epath.PathLike, frames, fps: int) -> None:
    """Writes an MP4 (H.264, 4:2:0) that repeats the frames until it lasts four seconds.

    Args:
      frames: (frame, height, width, 3) uint8; small ones are enlarged by a whole factor to 256 pixels or more.
      fps: frames per second.
    """
    frames = checked_frames(path, frames)
    frames = enlarge(frames, -(-_MIN_SIZE // min(frames.shape[1:3])))
    height, width = frames.shape[1:3]
    frames = np.pad(frames, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")  # 4:2:0 needs even sizes
    encoded = io.BytesIO()
    with av.open(encoded, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "16"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for _ in range(max(1, round(_SECONDS * fps / len(frames)))):
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    files.write_atomically(path, encoded.getvalue())
