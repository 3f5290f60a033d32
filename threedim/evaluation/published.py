"""Published figures on the same test sets: the tables of 3DiM's paper, and one later method."""

from __future__ import annotations

import dataclasses

from threedim.errors import UserError

_PAPER = "D. Watson et al., Novel View Synthesis with Diffusion Models, arXiv 2210.04628"
_SPLATTER = "S. Szymanowicz et al., Splatter Image: Ultra-Fast Single-View 3D Reconstruction, arXiv 2312.13150"


@dataclasses.dataclass(frozen=True)
class Row:
    """One method's figures on a test set: PSNR in dB, SSIM with a Gaussian window, FID between all views, LPIPS.

    None where the method's paper reports none.
    """

    name: str
    psnr: float
    ssim: float | None = None
    fid: float | None = None
    lpips: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows that compare with each other, in the paper's order, with citations, and remarks to print beside them."""

    title: str
    rows: tuple[Row, ...]
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()


_ABLATIONS = "The last three rows are the paper's ablations: the same network used or trained otherwise."

TABLES = {
    "cars": Table(
        "SRN cars",
        (
            Row("SRN", 22.25, 0.88, 41.21),
            Row("PixelNeRF", 23.17, 0.89, 59.24),
            Row("VisionNeRF", 22.88, 0.90, 21.31),
            Row("CodeNeRF", 23.80, 0.91),
            Row("LFN", 22.42, 0.89),
            Row("ENR", 22.26),
            Row("Splatter Image", 24.00, 0.92, lpips=0.078),
            Row("3DiM, 471M", 21.01, 0.57, 8.99),
            Row("3DiM, always from the input view", 23.82, 0.59, 1.87),
            Row("Regression", 22.55, 0.85, 17.45),
            Row("Concat-UNet", 17.21, 0.52, 21.54),
        ),
        (_PAPER, _SPLATTER),
        (_ABLATIONS,),
    ),
    "chairs": Table(
        "SRN chairs",
        (
            Row("SRN", 22.89, 0.89, 26.51),
            Row("PixelNeRF", 23.72, 0.90, 38.49),
            Row("VisionNeRF", 24.48, 0.92, 10.05),
            Row("CodeNeRF", 23.66, 0.90),
            Row("LFN", 22.26, 0.90),
            Row("ENR", 22.83),
            Row("Splatter Image", 24.43, 0.93, lpips=0.067),
            Row("3DiM, 471M", 17.05, 0.53, 6.57),
        ),
        (_PAPER, _SPLATTER),
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
