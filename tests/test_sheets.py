import stat
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from threedim import files, pixels
from threedim.output import sheets
from threedim.output.sheets import make_grid, make_sheet, save_gif


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_every_uint8_survives_the_round_trip():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    floats = pixels.to_float(values)
    assert floats.dtype == np.float32
    assert (floats.min(), floats.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(pixels.to_uint8(floats), values)


def test_rounds_to_the_nearest_and_clips():
    # (x + 1) 127.5 = 0.49, 0.51, 127.5 → even 128, 254.4, 254.6
    x = np.asarray([0.49, 0.51, 127.5, 254.4, 254.6]) / 127.5 - 1
    np.testing.assert_array_equal(pixels.to_uint8(x), [0, 1, 128, 254, 255])
    np.testing.assert_array_equal(pixels.to_uint8(np.asarray([-1.5, -1.0, 1.0, 7.0])), [0, 0, 255, 255])
    np.testing.assert_array_equal(pixels.to_uint8(jnp.asarray([-1, 0.5], jnp.bfloat16)), [0, 191])
    assert pixels.to_uint8(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_and_other_dtypes_are_refused(bad):
    with pytest.raises(ValueError, match="1 of 3 numbers are not finite"):
        pixels.to_uint8(np.asarray([0.0, bad, 0.0]))
    with pytest.raises(ValueError, match="takes floats"):
        pixels.to_uint8(noise(2, 2))
    with pytest.raises(ValueError, match="takes uint8"):
        pixels.to_float(np.zeros(2))


def test_grid_geometry():
    pictures = noise(2, 3, 4, 5, 3)
    pad, scale = 3, 2
    grid = make_grid(pictures, pad=pad, scale=scale)
    expected = np.full((2 * (8 + 3) + 3, 3 * (10 + 3) + 3, 3), 255, np.uint8)
    for row, col in np.ndindex(2, 3):
        y, x = pad + row * (8 + pad), pad + col * (10 + pad)
        expected[y : y + 8, x : x + 10] = np.kron(pictures[row, col], np.ones((2, 2, 1), np.uint8))
    np.testing.assert_array_equal(grid, expected, strict=True)


@pytest.mark.parametrize(("size", "shown"), [(16, 128), (32, 128), (64, 128), (128, 128), (200, 200), (48, 144)])
def test_small_pictures_are_enlarged_to_be_seen(size, shown):
    assert make_grid(noise(1, 1, size, size, 3), pad=0).shape == (shown, shown, 3)


def test_labels_stand_beside_and_above():
    pictures = np.full((2, 3, 40, 60, 3), 128, np.uint8)
    plain = make_grid(pictures, scale=1)
    rows, columns = ["first", "a long row label"], ["in", "two words here", "z"]
    labelled = make_grid(pictures, scale=1, row_labels=rows, col_labels=columns)
    top, left = (a - b for a, b in zip(labelled.shape[:2], plain.shape[:2], strict=True))
    assert top > 20, "a label of two lines"
    assert left > 60
    # The pictures are untouched, and the labels are outside of them.
    np.testing.assert_array_equal(labelled[top:, left:], plain)
    dark = labelled[..., 0] < 100
    assert dark[:top, left:].any()
    assert dark[top:, :left].any()
    # A label of one line stands just above its picture, where a label of two ends.
    assert not dark[: top // 2, left : left + 62].any()
    assert dark[: top // 2, left + 62 : left + 124].any()


def test_a_wide_word_widens_the_columns():
    pictures = np.full((1, 2, 16, 16, 3), 128, np.uint8)
    grid = make_grid(pictures, scale=1, col_labels=["unconditional", "b"])
    assert grid.shape[1] > 2 * 80
    columns = np.flatnonzero((grid[-5] == 128).all(axis=-1))
    assert len(columns) == 32
    # No word is cut: its last ink stays left of the next column.
    ink = np.flatnonzero((grid[:12, :, 0] < 100).any(axis=0))
    assert ink[ink < columns[16]].max() < columns[16] - 1


def test_letters_that_the_font_lacks_are_question_marks():
    pictures = noise(1, 1, 32, 32, 3)
    one, other = (make_grid(pictures, row_labels=[label]) for label in ("a日b c", "a?b c"))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": noise(2, 4, 4, 3)}, "must be uint8"),
        ({"images": np.zeros((1, 1, 4, 4, 3))}, "got float64"),
        ({"images": noise(0, 1, 4, 4, 3)}, r"\(0, 1, 4, 4, 3\)"),
        ({"images": noise(1, 1, 4, 4, 3), "scale": 1.5}, "scale must be a whole number"),
        ({"images": noise(1, 1, 4, 4, 3), "pad": -1}, "pad must not be negative"),
        ({"images": noise(1, 2, 4, 4, 3), "col_labels": ["a"]}, "1 col_labels for 2"),
        ({"images": noise(1, 2, 4, 4, 3), "row_labels": ["a", "b"]}, "2 row_labels for 1"),
    ],
)
def test_grid_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_grid(**arguments)


def test_sheet_holds_every_view_once_and_truth_below_drawn():
    views, size = 5, 32

    def gray(first, count):
        """Each picture has its own gray value."""
        return np.full((count, size, size, 3), np.arange(first, first + count)[:, None, None, None], np.uint8)

    sheet = make_sheet(gray(150, 1), [gray(160, views), gray(170, views)], columns=3, scale=1)
    place = {}
    for value in (150, *range(160, 165), *range(170, 175)):
        where = np.argwhere((sheet == value).all(axis=-1))
        full = [tuple(p) for p in where if (sheet[p[0] : p[0] + size, p[1] : p[1] + size] == value).all()]
        (place[value],) = [p for p in full if p[0] + size <= sheet.shape[0] and p[1] + size <= sheet.shape[1]]
    for index in range(views):
        assert place[160 + index][1] == place[170 + index][1], "same column"
        assert place[170 + index][0] - place[160 + index][0] == size + 2, "next line"
    assert place[150][0] < place[160][0] < place[163][0]
    assert place[160][1] == place[163][1]
    with pytest.raises(ValueError, match="do not agree"):
        make_sheet(gray(0, 1), [noise(2, 8, 8, 3)])


def test_lines_of_a_long_sheet_name_their_views(monkeypatch):
    named = []
    monkeypatch.setattr(sheets, "make_grid", lambda pictures, **options: named.extend(options["row_labels"]))
    make_sheet(noise(1, 8, 8, 3), [noise(3, 8, 8, 3), noise(3, 8, 8, 3)], columns=2)
    assert named == ["input", "sampled 1-2", "true 1-2", "sampled 3-3", "true 3-3"]


def test_png_is_lossless_and_replaces(tmp_path):
    path = tmp_path / "new" / "a.png"
    for seed in (0, 1):
        picture = noise(6, 9, 3, seed=seed)
        pixels.save_png(path, picture)
        np.testing.assert_array_equal(pixels.load_png(path), picture)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    with pytest.raises(ValueError, match=r"a\.png: picture must be uint8"):
        pixels.save_png(path, np.zeros((2, 2, 3)))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"a\.png: not a complete PNG"):
        pixels.load_png(path)
    with pytest.raises(FileNotFoundError):
        pixels.load_png(tmp_path / "absent.png")


def read_gif(path):
    frames, durations = [], []
    with Image.open(path) as gif:
        loop = gif.info["loop"]
        for index in range(gif.n_frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
            frames.append(np.asarray(gif.convert("RGB")))
    return np.stack(frames), durations, loop


def test_gif_keeps_few_colors_exactly(tmp_path):
    frames = (noise(7, 8, 8, 1) // 64 * 64).repeat(3, axis=-1)
    save_gif(tmp_path / "a.gif", frames, fps=10, scale=3)
    shown, durations, loop = read_gif(tmp_path / "a.gif")
    np.testing.assert_array_equal(shown, frames.repeat(3, axis=1).repeat(3, axis=2))
    assert (durations, loop) == ([100] * 7, 0)


def test_gif_of_many_colors_is_close_and_white_stays_white(tmp_path):
    t, y, x = np.meshgrid(*(np.linspace(0, 1, n) for n in (12, 32, 32)), indexing="ij")
    frames = (np.stack([x, y, (x + t) / 2], axis=-1) * 255).astype(np.uint8)
    frames[:, :, :8] = 255
    save_gif(tmp_path / "a.gif", frames, fps=8, scale=1)
    shown, _, _ = read_gif(tmp_path / "a.gif")
    assert np.abs(shown.astype(int) - frames).mean() < 8
    assert np.all(shown[:, :, :8] == 255)


@pytest.mark.parametrize("fps", [3, 7, 24, 30, 50])
def test_gif_lasts_as_long_as_it_should(tmp_path, fps):
    save_gif(tmp_path / "a.gif", noise(25, 8, 8, 3), fps=fps)
    shown, durations, _ = read_gif(tmp_path / "a.gif")
    assert len(shown) == 25
    assert abs(sum(durations) - 1000 * 25 / fps) <= 5
    assert max(durations) - min(durations) <= 10
    # Equal frames are one that is shown longer.
    save_gif(tmp_path / "b.gif", noise(4, 8, 8, 3)[[0, 1, 1, 1, 2, 3]], fps=10)
    assert read_gif(tmp_path / "b.gif")[1] == [100, 300, 100, 100]


def test_bad_animations_are_refused_and_leave_no_file(tmp_path):
    for count, fps, said in (
        (2, 0, "fps must be positive"),
        (0, 5, r"got uint8 \(0, 4, 4, 3\)"),
        (2, 60, "at most 50"),
    ):
        with pytest.raises(ValueError, match=said):
            save_gif(tmp_path / "a.gif", noise(count, 4, 4, 3), fps=fps)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    pixels.save_png(path, noise(2, 2, 3))
    before = path.read_bytes()
    monkeypatch.setattr(files.os, "fsync", mock.Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        pixels.save_png(path, noise(9, 9, 3))
    assert (path.read_bytes(), [p.name for p in tmp_path.iterdir()]) == (before, ["a.png"])


def test_written_files_have_the_usual_permissions(tmp_path):
    files.write_atomically(tmp_path / "a.txt", "ä")
    (tmp_path / "b.txt").write_text("x")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "ä"
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.txt", "b.txt")]
    assert modes[0] == modes[1]
