"""Published figures on the same test sets: the tables of 3DiM's paper, and one later method."""

from __future__ import annotations

import dataclasses

from threedim.errors import UserError

_PAPER = "D. Watson et al., Novel View Synthesis with Diffusion Models, arXiv 2210.04628"
_SPLATTER = "S. Szymanowicz et al., Splatter Image: Ultra-Fast Single-View 3D Reconstruction, arXiv 2312.13150"


@dataclasses.dataclass(frozen=True)
class Row:
    """One method's figures on a test set: PSNR in dB, SSIM with a Gaussian or a uniform window, FID, LPIPS.

    None where the method's paper reports none.
    """

    name: str
    psnr: float
    ssim: float | None = None
    fid: float | None = None
    lpips: float | None = None
    ssim_uniform: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows that compare with each other, in the paper's order, with citations, and remarks to print beside them."""

    title: str
    rows: tuple[Row, ...]
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()


# By the code that each method published.
_WINDOWS = (
    "SSIM's windows: 3DiM and its ablations Gaussian; Splatter Image Gaussian, but over pictures padded with zeros; "
    "SRN, PixelNeRF, CodeNeRF and LFN uniform, CodeNeRF with scikit-image's data range of 2 for floats, which raises "
    "SSIM; VisionNeRF publishes no code of its figures, and compares them with PixelNeRF's."
)
_ABLATIONS = "The last three rows are the paper's ablations: the same network used or trained otherwise."

TABLES = {
    "cars": Table(
        "SRN cars",
        (
            Row("SRN", 22.25, fid=41.21, ssim_uniform=0.88),
            Row("PixelNeRF", 23.17, fid=59.24, ssim_uniform=0.89),
            Row("VisionNeRF", 22.88, fid=21.31, ssim_uniform=0.90),
            Row("CodeNeRF", 23.80, ssim_uniform=0.91),
            Row("LFN", 22.42, ssim_uniform=0.89),
            Row("ENR", 22.26),
            Row("Splatter Image", 24.00, 0.92, lpips=0.078),
            Row("3DiM, 471M", 21.01, 0.57, 8.99),
            Row("3DiM, always from the input view", 23.82, 0.59, 1.87),
            Row("Regression", 22.55, 0.85, 17.45),
            Row("Concat-UNet", 17.21, 0.52, 21.54),
        ),
        (_PAPER, _SPLATTER),
        (_ABLATIONS, _WINDOWS),
    ),
    "chairs": Table(
        "SRN chairs",
        (
            Row("SRN", 22.89, fid=26.51, ssim_uniform=0.89),
            Row("PixelNeRF", 23.72, fid=38.49, ssim_uniform=0.90),
            Row("VisionNeRF", 24.48, fid=10.05, ssim_uniform=0.92),
            Row("CodeNeRF", 23.66, ssim_uniform=0.90),
            Row("LFN", 22.26, ssim_uniform=0.90),
            Row("ENR", 22.83),
            Row("Splatter Image", 24.43, 0.93, lpips=0.067),
            Row("3DiM, 471M", 17.05, 0.53, 6.57),
        ),
        (_PAPER, _SPLATTER),
        (_WINDOWS,),
    ),
    "chairs_star": Table(
        "SRN chairs*, merged and split anew",
        (
            Row("3DiM, 471M", 14.29, 0.48, 3.30),
            Row("3DiM, always from the input view", 15.73, 0.51, 1.05),
            Row("Regression", 16.85, 0.76, 20.70),
            Row("Concat-UNet", 12.36, 0.44, 5.15),
        ),
        (_PAPER,),
        (_ABLATIONS, "The paper's split of chairs* is not published, so its rows are of other test objects."),
    ),
}

# 3D consistency scores [4]: of neural fields fitted to each method's views. They depend on the field above all.
_FIELD = "Made with the authors' own neural field: compare the differences between rows, not the rows."

CONSISTENCY = {
    "cars": Table(
        "SRN cars, 3D consistency score",
        (
            Row("Real data", 28.21, 0.96, 10.57),
            Row("3DiM, 1.3B", 28.48, 0.96, 29.55),
            Row("3DiM, 471M", 28.53, 0.96, 22.09),
            Row("3DiM, always from the input view", 25.78, 0.94, 30.51),
        ),
        (_PAPER,),
        (_FIELD,),
    ),
    "chairs_star": Table(
        "SRN chairs*, 3D consistency score",
        (
            Row("Real data", 24.87, 0.93, 17.05),
            Row("3DiM, 1.3B", 22.90, 0.86, 58.61),
            Row("3DiM, 471M", 18.84, 0.79, 98.78),
            Row("3DiM, always from the input view", 17.61, 0.75, 116.16),
        ),
        (_PAPER,),
        (_FIELD,),
    ),
}


def table(name: str) -> Table | None:
    """The table with this name, None for "none"; `UserError` if there is no such table."""
    if name != "none" and name not in TABLES:
        raise UserError(f"evaluate.published must be one of none, {', '.join(TABLES)}, got {name!r}")
    return TABLES.get(name)
