"""Temporary: names that moved to pixels, sheets and animations."""

from threedim.output.animations import save_gif
from threedim.output.sheets import make_grid, make_sheet
from threedim.pixels import load_png, save_png, to_float, to_uint8

__all__ = ["load_png", "make_grid", "make_sheet", "save_gif", "save_png", "to_float", "to_uint8"]
