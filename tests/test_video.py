"""MP4 files that every player takes."""

import av
import numpy as np
import pytest

from threedim.output import video


def frames(count, size):
    """One color each."""
    colors = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3), np.uint8)
    return np.broadcast_to(colors, (count, size, size, 3))


@pytest.mark.parametrize(("count", "size", "height"), [(8, 16, 256), (3, 13, 260), (40, 257, 258)])
def test_video_is_read_back(tmp_path, count, size, height):
    given = frames(count, size)
    video.save_mp4(tmp_path / "turn.mp4", given, fps=8)
    with av.open(str(tmp_path / "turn.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == 8
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) % count == 0
    assert 3.5 <= len(decoded) / 8 < 5.1
    for index, picture in enumerate(decoded):
        assert picture.shape == (height, height, 3)
        assert np.abs(picture.astype(int) - given[index % count, 0, 0]).max() <= 8


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (2, 8, 8, 4), (8, 8, 3)])
def test_what_is_no_video_is_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="frames must be uint8"):
        video.save_mp4(tmp_path / "turn.mp4", np.zeros(shape, np.uint8), fps=8)
    assert not any(tmp_path.iterdir())
