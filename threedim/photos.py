"""One picture of an object without a camera: the object is cut out, framed as in training data, and given a camera."""

from __future__ import annotations

import dataclasses

import numpy as np
from etils import epath
from PIL import Image
from scipy import ndimage

from threedim import cameras as cameras_lib
from threedim.cameras import Camera
from threedim.data import pictures
from threedim.data import png as png_lib
from threedim.errors import UserError
from threedim.rendering import viewpoints

# Longer side of objects in the training views of procedural chairs and cars, in picture sizes: the mean.
FILL = 0.72
# Degrees, of the procedural training views: 52.
FIELD_OF_VIEW = float(np.rad2deg(2 * np.arctan(0.5 / viewpoints.FOCAL)))
# Backgrounds are looked for in a picture of at most this size, pixels.
_WORKING_SIZE = 512
# A background is where neighboring pixels differ by at most so many of 255 levels, as in gradients and soft shadows.
_SMOOTH = 10.0
# It takes in at least so much of the picture's edge.
_MIN_EDGE = 0.8


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A picture of an object, (size, size, 3) uint8 on white, and its camera, K in pixels of the picture.

    Raises:
      UserError: if the picture is none such, or there are several cameras.
    """

    image: np.ndarray
    camera: Camera

    def __post_init__(self):
        shape = np.shape(self.image)
        if np.asarray(self.image).dtype != np.uint8 or len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3:
            raise UserError(f"a view's image must be square, uint8 (size, size, 3), got {shape}")
        if np.shape(self.camera.t) != (3,):
            raise UserError(f"a view has one camera, got axes {np.shape(self.camera.t)[:-1]}")

    def resized(self, size: int) -> View:
        """The view at ``size`` x ``size`` pixels, averaged over the area of the new ones, or enlarged."""
        image, old = Image.fromarray(self.image), len(self.image)
        if size > old:
            resized = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
        else:
            resized = png_lib.decode_png(png_lib.encode_png(self.image), size)
        return View(resized, self.camera.resized((old, old), (size, size)))


def photo(
    path: epath.PathLike,
    *,
    azimuth: float = 0.0,
    elevation: float = 20.0,
    radius: float = viewpoints.RADIUS,
    fov: float = FIELD_OF_VIEW,
    mask: epath.PathLike | None = None,
    fill: float = FILL,
) -> View:
    """Reads a picture of an object, cuts the object out, and frames it as in training data.

    The object is taken from the mask, or from the picture's alpha channel, or from a background that is plain: one
    color, a gradient, soft shadows.

    Args:
      path: a picture file, as `data.pictures.load` reads it: JPEG, PNG, WebP, TIFF...
      azimuth: of the camera, degrees, counter-clockwise seen from above. Only differences to target cameras count.
      elevation: of the camera above the horizon, degrees. It cannot be seen in the file: have a guess.
      radius: distance of the camera to the middle of the object, in units of the training data.
      fov: field of view of the framed picture, degrees; that of the training data.
      mask: a picture of the same size, black where the background is.
      fill: longer side of the object, in sizes of the framed picture.

    Raises:
      UserError: if the picture or mask cannot be read, no object is found in it, or a number is out of range.
    """
    for name, value, low, high in (("elevation", elevation, -90, 90), ("fov", fov, 1, 150), ("fill", fill, 0.05, 1)):
        if not low <= value <= high:
            raise UserError(f"{name} must be in [{low}, {high}], got {value}")
    if not radius > 0:
        raise UserError(f"radius must be positive, got {radius}")
    image = pictures.load(path, mask=mask or None).image
    if image.mode != "RGBA" or image.getchannel("A").getextrema()[0] == 255:
        image = image.convert("RGB")
        image.putalpha(Image.fromarray(_object(path, np.asarray(image))))
    framed = _framed(path, image, fill)
    K = cameras_lib.intrinsics(0.5 / np.tan(np.deg2rad(fov) / 2) * len(framed), len(framed))
    return View(framed, cameras_lib.orbit([azimuth], elevation, radius, K)[0])


def _object(path: epath.PathLike, image: np.ndarray) -> np.ndarray:
    """Alpha of the object before a plain background, (height, width) uint8, of (height, width, 3) uint8."""
    height, width = image.shape[:2]
    small = Image.fromarray(image)
    small.thumbnail((_WORKING_SIZE, _WORKING_SIZE))
    pixels = ndimage.gaussian_filter(np.asarray(small, np.float32), (1, 1, 0))  # noise of cameras, and of JPEG
    contrast = ndimage.maximum_filter(pixels, (3, 3, 1)) - ndimage.minimum_filter(pixels, (3, 3, 1))
    areas, count = ndimage.label(contrast.max(-1) <= _SMOOTH)
    edge = np.concatenate([areas[0], areas[-1], areas[:, 0], areas[:, -1]])
    at_edge = np.setdiff1d(np.unique(edge), [0])
    background = np.isin(areas, at_edge)
    if np.isin(edge, at_edge).mean() < _MIN_EDGE:
        way_out = "save it as a PNG with a transparent background, or give a mask (--config.sample.mask=FILE)"
        raise UserError(f"{path}: the background is not plain, so the object cannot be cut out; {way_out}")
    # What shows through holes of the object: areas of the color that the nearest background has.
    nearest = ndimage.distance_transform_edt(~background, return_distances=False, return_indices=True)
    distance = np.abs(pixels - pixels[tuple(nearest)]).max(-1)
    inside = np.setdiff1d(np.arange(1, count + 1), at_edge)
    same = ndimage.mean(distance, areas, inside) < 1.5 * _SMOOTH if len(inside) else np.zeros(0, bool)
    background |= np.isin(areas, inside[same])
    # The filters have widened the object by two pixels.
    found = ~ndimage.binary_dilation(background, iterations=2)
    parts, count = ndimage.label(found)
    sizes = ndimage.sum_labels(found, parts, np.arange(1, count + 1)) if count else np.zeros(1)
    if sizes.max() < 0.002 * found.size:
        raise UserError(f"{path}: there is no object before the background")
    found = np.isin(parts, 1 + np.flatnonzero(sizes > 0.02 * sizes.max()))
    alpha = Image.fromarray((255 * found).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(alpha)


def _framed(path: epath.PathLike, image: Image.Image, fill: float) -> np.ndarray:
    """A square around the object of an RGBA picture, on white: (size, size, 3) uint8."""
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
    if box is None:
        raise UserError(f"{path}: the whole picture is transparent, or black in the mask")
    if any(np.equal(box, (0, 0, *image.size))):
        print(f"warning: {path}: the object reaches the edge of the picture; what is beyond is missing")
    size = int(np.ceil(max(box[2] - box[0], box[3] - box[1]) / fill))
    left, top = (box[0] + box[2] - size) // 2, (box[1] + box[3] - size) // 2
    square = Image.new("RGBA", (size, size))
    square.paste(image, (-left, -top))
    return np.array(png_lib.over_white(square))
