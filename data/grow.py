#!/usr/bin/env python3
"""A sheet of completions as an animated picture: they grow row by row, then the originals appear.

    pip install pillow numpy
    python3 data/grow.py out/completions.png N_PX data/growing.gif

The sheet's layout is sheet_write's in igpt.c; a line has what is given, the completions, the original.
SPDX-License-Identifier: MIT
"""
import sys

import numpy as np
from PIL import Image

CELL, GAP, GROUND, HIDDEN = 96, 4, 0xE8, 128  # as in igpt.c; HIDDEN is the grey below what is given
ROW, LAST = 120, 2500  # milliseconds that a frame stays


def main(sheet, n_px, path):
    sheet = np.asarray(Image.open(sheet).convert("RGB"))
    zoom = max(CELL // n_px, 1)
    side = n_px * zoom + GAP
    lines, columns = sheet.shape[0] // side, sheet.shape[1] // side

    def picture(image, line, column):  # a view of it in the sheet
        y, x = line * side + GAP, column * side + GAP
        return image[y : y + n_px * zoom, x : x + n_px * zoom]

    # The first picture of a line is grey from the first row that was not given.
    given = picture(sheet, 0, 0).reshape(n_px, -1)
    rows = next((y for y in range(n_px) if (given[y] == HIDDEN).all()), n_px)
    frames = []
    for shown in [*range(rows, n_px + 1), n_px]:
        frame = sheet.copy()
        last = len(frames) == n_px - rows + 1
        for line in range(lines):
            for column in range(1, columns - 1):
                picture(frame, line, column)[shown * zoom :] = HIDDEN
            if not last:
                picture(frame, line, columns - 1)[:] = GROUND
        frames.append(Image.fromarray(frame))
    palette = frames[-1].quantize(256)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [4 * ROW] + [ROW] * (len(frames) - 3) + [6 * ROW, LAST]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True)


main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
