"""Any picture file to what records hold: an upright 8-bit picture, and square PNGs of all views of an object."""

from __future__ import annotations

import dataclasses
import functools
import io
import pathlib
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageChops

from threedim import files
from threedim.data import distortion
from threedim.data import png as png_lib
from threedim.data.views import BadObjectError, ViewFiles, blame

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # content decides, not the suffix
_EXIF_ORIENTATION = 0x0112
# How a picture with such an orientation is set upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pictures that are encoded anew are averaged down to this: photographs of 12 megapixels would fill the memory.
_MAX_SIZE = 1024
_CROP_MARGIN = 1.1
# Pillow raises all of these on damaged files: without pixels IndexError, with a palette that is missing AssertionError.
_DAMAGED = (OSError, SyntaxError, ValueError, zlib.error, struct.error, IndexError, AssertionError, EOFError)
_DAMAGED += (KeyError, TypeError, OverflowError)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded picture."""

    image: Image.Image  # upright, 8 bits: RGB, or RGBA where something is transparent
    data: bytes  # of the file
    is_exact: bool  # the file is an 8-bit PNG of these pixels
    orientation: int = 1  # of the EXIF data, applied unless 1


def find(
    roots: Sequence[epath.Path], names: Sequence[str], listed_in: epath.Path, *, may_lack_all: bool = False
) -> list[epath.Path]:
    """Picture files by the names that ``listed_in`` has for them, relative to one of the folders ``roots``.

    Names may lack a suffix, or have another one or other case than the file. Of paths that lead out of the folder, as
    those of another machine do, the last parts must be right.

    Raises:
      BadObjectError: if pictures do not exist; not if all are missing and ``may_lack_all``, for which it returns [].
    """

    @functools.cache
    def listing(folder: epath.Path) -> dict[str, epath.Path]:
        paths = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
        paths.sort(key=lambda path: path.suffix.lower() == ".png")  # of the same name, a PNG counts
        return {path.stem.lower(): path for path in paths if path.suffix.lower() in SUFFIXES}

    def find_one(name: str) -> epath.Path | None:
        parts = pathlib.PurePosixPath(name.replace("\\", "/")).parts
        found = [exact] if (exact := roots[0].joinpath(*parts)).is_file() else []
        is_elsewhere = parts and (parts[0] in ("/", "..") or parts[0].endswith(":"))
        for start in range(len(parts) if is_elsewhere else 1):
            *folders, last = parts[start:]
            stem = last.rpartition(".")[0] if last.lower().endswith(SUFFIXES) else last
            found += [path for root in roots if (path := listing(root.joinpath(*folders)).get(stem.lower()))]
        return next((path for path in found if not files.leads_out(path)), found[0] if found else None)

    found = [find_one(name) for name in names]
    for path in filter(None, found):
        if problem := files.leads_out(path):
            raise BadObjectError(listed_in, f"{path} {problem}")
    if missing := [name for name, path in zip(names, found, strict=True) if path is None]:
        if may_lack_all and len(missing) == len(names):
            return []
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        problem = f"picture is missing{more}, but {listed_in.name} lists it; put it there, or remove it from the list"
        raise BadObjectError(roots[0] / missing[0], problem)
    return found


def load(path: epath.PathLike, size: tuple[int, int] | None = None, mask: epath.PathLike | None = None) -> Picture:
    """Reads a PNG, JPEG, WebP, BMP or TIFF file of any bit depth and color space, whatever its suffix.

    16-bit channels are scaled to 8 bits, and the EXIF orientation is applied.

    Args:
      path: the file.
      size: width and height that the picture should have. If the EXIF orientation contradicts it, it is not applied.
      mask: a picture of the same size, black where the background is, which becomes transparent.

    Raises:
      BadObjectError: if the file is missing, empty, damaged, animated, or no such picture.
    """
    path = epath.Path(path)
    try:
        if path.exists() and not files.is_file(path):
            raise BadObjectError(path, "is a folder, a pipe or a device; expected a file")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise BadObjectError(path, "file is missing") from error
    except OSError as error:
        raise BadObjectError(path, f"cannot be read ({error.strerror or error})") from error
    image, is_exact, orientation = _decode(path, data)
    if orientation >= 5 and image.size == size and size[0] != size[1]:
        orientation = 1
    if orientation != 1:
        image, is_exact = image.transpose(_UPRIGHT[orientation]), False
    if mask is not None:
        image, is_exact = _masked(image, path, epath.Path(mask)), False
    return Picture(image, data, is_exact, orientation)


def load_rgb(path: epath.PathLike) -> np.ndarray:
    """A picture over white, (height, width, 3) uint8; errors as for `load`."""
    return np.array(png_lib.over_white(load(path).image))


def _decode(path: epath.Path, data: bytes) -> tuple[Image.Image, bool, int]:
    """The picture in 8 bits, whether the file is an 8-bit PNG of it, and its EXIF orientation."""
    if problem := _not_a_picture(data):
        raise BadObjectError(path, problem)
    try:
        # verify() checks the checksums of PNGs but leaves the image unusable; load() decodes every row.
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            # MPO is a JPEG with a second one behind it, as phones write it.
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise BadObjectError(path, f"is animated ({image.n_frames} frames); save one frame as the picture")
            image.verify()
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            image.load()
            is_exact = image.format == "PNG" and image.mode in ("RGB", "RGBA", "L", "LA", "P")
            return _eight_bits(path, image), is_exact, _orientation(image)
    except Image.DecompressionBombError as error:
        size = "x".join(map(str, struct.unpack(">II", data[16:24]))) + " pixels: " if data[1:4] == b"PNG" else ""
        limit = f"{2 * Image.MAX_IMAGE_PIXELS // 10**6} million pixels at most are read; make the picture smaller"
        raise BadObjectError(path, f"{size}picture is too large; {limit}") from error
    except BadObjectError:
        raise
    except _DAMAGED as error:
        unknown = isinstance(error, Image.UnidentifiedImageError)
        kind = f"a picture ({', '.join(_FORMATS)})" if unknown else "a complete picture"
        kind = "a complete PNG" if data[1:4] == b"PNG" else kind
        raise BadObjectError(path, f"not {kind}: {f'it begins with {data[:12]!r}' if unknown else error}") from error


def _not_a_picture(data: bytes) -> str | None:
    """What a file is instead of a picture, if that is plain."""
    start = data[:256].lstrip().lower()
    if not data:
        return "file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the picture; run: git lfs pull"
    if start.startswith((b"<!doctype", b"<html")):
        return "is a web page, not a picture; download it again"
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return "is a HEIC or AVIF picture, which is not read; convert it to JPEG or PNG"
    return None


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DAMAGED:  # damaged metadata of a picture that is fine
        return 1
    return value if value in _UPRIGHT else 1


def _eight_bits(path: epath.Path, image: Image.Image) -> Image.Image:
    """RGB, or RGBA where something may be transparent."""
    if image.mode.startswith("I"):
        # Pillow reads 16-bit grey so, and clips it where it converts. RGB it reduces to 8 bits itself.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadObjectError(path, f"gray levels from {values.min()} to {values.max()}; expected 8 or 16 bits")
        opaque = image.info.get("transparency")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
        if isinstance(opaque, int):
            image.putalpha(Image.fromarray(np.where(values == opaque, 0, 255).astype(np.uint8)))
    elif image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"):
        raise BadObjectError(path, f"pixels of kind {image.mode!r}; expected gray, RGB, RGBA, CMYK or a palette")
    with_alpha = image.has_transparency_data or image.mode in ("LA", "La", "PA", "RGBa")
    return image.convert("RGBA" if with_alpha else "RGB")


def _masked(image: Image.Image, path: epath.Path, mask_path: epath.Path) -> Image.Image:
    mask = load(mask_path).image.convert("RGB").convert("L")
    if mask.size != image.size:
        problem = f"{_dims(mask.size)} pixels, but {path.name} has {_dims(image.size)}; make them equal"
        raise BadObjectError(mask_path, problem)
    image = image.convert("RGBA")
    values = np.asarray(mask) * np.uint8(255 if mask.getextrema()[1] == 1 else 1)  # some masks are 0 and 1
    alpha = np.minimum(np.asarray(image.getchannel("A")), values)
    image.putalpha(Image.fromarray(alpha))
    return image


def _dims(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What one pass over a picture has found."""

    png: bytes | None  # the file, if it is a square 8-bit PNG
    size: tuple[int, int]
    box: tuple[int, int, int, int] | None  # left, top, right, bottom of what is neither white nor transparent
    is_black: bool
    checksum: int
    orientation: int


def _load_view(view: ViewFiles) -> Picture:
    picture = load(view.picture, view.size, view.mask)
    if not any(view.distortion):
        return picture
    with blame(view.pose, f"{view.picture.name}: "):
        image = distortion.undistort(picture.image, view.intrinsics(*picture.image.size), view.distortion)
    return dataclasses.replace(picture, image=image, is_exact=False)


def _look(view: ViewFiles) -> _Seen:
    picture = _load_view(view)
    shown = png_lib.over_white(picture.image)
    exact = picture.data if picture.is_exact and shown.width == shown.height else None
    box, checksum = ImageChops.invert(shown).getbbox(), zlib.crc32(shown.tobytes())
    return _Seen(exact, shown.size, box, shown.getbbox() is None, checksum, picture.orientation)


def square_pngs(
    folder: epath.Path, views: Sequence[ViewFiles], fit: str
) -> tuple[list[bytes], np.ndarray, int, list[str]]:
    """Square 8-bit PNGs of one size, of all views of an object. PNGs that are so already keep their bytes.

    Args:
      folder: of the object, for messages.
      views: the files; ``intrinsics`` is called with the size of each picture.
      fit: what is done with pictures that are not square, or not of one size, as in `views.ReadSettings`.

    Returns:
      PNGs, K (view, 3, 3) in pixels of these, their height and width, and warnings.

    Raises:
      BadObjectError: if a picture cannot be read, or does not fit and ``fit`` is "refuse".
    """
    seen = [_look(view) for view in views]
    sizes = [one.size for one in seen]
    if fit == "refuse":
        _check_sizes(views, sizes)
    # Views of one camera share the function.
    K_of = functools.cache(lambda intrinsics, size: np.asarray(intrinsics(*size), np.float64))
    K = np.stack([K_of(view.intrinsics, size) for view, size in zip(views, sizes, strict=True)])
    warnings = _contents(views, seen)
    side = max(max(size) for size in sizes)
    if all(one.png is not None and one.size == (side, side) for one in seen):
        return [one.png for one in seen], K, side, warnings
    corners = np.zeros((len(views), 2), np.int64)
    if any(size != (side, side) for size in sizes):
        side, corners = _windows(folder, seen, K, side, fit)
    small = min(side, _MAX_SIZE)
    K[:, :2, 2] -= corners
    K[:, :2] *= small / side
    pngs = []
    for view, one, (x, y) in zip(views, seen, corners.tolist(), strict=True):
        if one.png is not None and one.size == (small, small) and x == y == 0:
            pngs.append(one.png)
        else:
            pngs.append(_encode(_load_view(view).image, (x, y), side, small))
    return pngs, K, small, warnings


def _encode(image: Image.Image, corner: tuple[int, int], side: int, small: int) -> bytes:
    """A window of a picture, transparent (or white) where it reaches beyond it, averaged down to ``small`` pixels."""
    if image.size != (side, side) or corner != (0, 0):
        whole = Image.new(image.mode, (side, side), (255, 255, 255, 0)[: len(image.mode)])
        whole.paste(image, (-corner[0], -corner[1]))
        image = whole
    data = png_lib.encode_png(np.asarray(image))
    return data if small == side else png_lib.encode_png(png_lib.decode_png(data, small))


def _windows(folder: epath.Path, seen: Sequence[_Seen], K: np.ndarray, side: int, fit: str) -> tuple[int, np.ndarray]:
    """Height and width of the square windows that pictures are cut to, and their left top corners (view, 2)."""
    sizes = np.asarray([one.size for one in seen])
    if fit == "pad":
        return side, -((side - sizes) // 2)
    boxes = np.asarray([one.box or (0, 0, 0, 0) for one in seen])
    extents = boxes[:, 2:] - boxes[:, :2]
    if np.all(extents == sizes):
        hint = "nothing in them is transparent or white; add masks or an alpha channel, or set data.fit to pad"
        raise BadObjectError(folder, f"pictures cannot be cropped to the object: {hint}")
    side = int(np.ceil(_CROP_MARGIN * max(extents.max(), 1)))
    # An empty view is cut where its camera looks.
    centers = [boxes[i, :2] + boxes[i, 2:] if one.box else 2 * K[i, :2, 2] for i, one in enumerate(seen)]
    return side, np.floor((np.asarray(centers) - side) / 2).astype(np.int64)


def _check_sizes(views: Sequence[ViewFiles], sizes: Sequence[tuple[int, int]]) -> None:
    hint = "set --config.data.fit to pad or crop"
    for view, size in zip(views, sizes, strict=True):
        if size[0] != size[1]:
            raise BadObjectError(view.picture, f"{_dims(size)} pixels; expected a square image, or {hint}")
        if size != sizes[0]:
            first = f"{views[0].picture.parent.name}/{views[0].picture.name} is {_dims(sizes[0])}"
            raise BadObjectError(view.picture, f"{_dims(size)} pixels, but {first}; {hint}")


def _contents(views: Sequence[ViewFiles], seen: Sequence[_Seen]) -> list[str]:
    """Warnings about what the pictures of an object show."""
    warnings = []
    if all(one.box is None for one in seen):
        warnings.append("all views are empty (transparent or white)")
    elif all(one.is_black for one in seen):
        warnings.append("all views are black")
    elif len(seen) > 1 and len({(one.checksum, one.size) for one in seen}) == 1:
        warnings.append("all views show the same picture")
    turned = [view.picture.name for view, one in zip(views, seen, strict=True) if one.orientation != 1]
    if turned:
        warnings.append(f"EXIF orientation applied to {len(turned)} pictures, such as {turned[0]}")
    return warnings
