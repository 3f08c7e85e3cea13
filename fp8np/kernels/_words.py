"""The words that `product` and `depthwise` read, by number: see `fp8np.kernels._ending` for what they mean.

A view is four words: an address, and bytes from image to image, row to row, and pixel to pixel.
"""

from __future__ import annotations

A = 0  # a view: the tap (0, 0) of each output pixel
OFFSETS, STEPS, PACKED, TABLES, BLOCKS, N, CHUNK, GROUP = range(4, 12)
IMAGES, SEGMENTS, COUNT, WIDTH, VALID = range(12, 17)  # segments of an image, pixels of a segment, of a row, and those stored
A_SCALE, W_SCALE, BIAS, KIND, LO, HI, FLAGS, DEPTH, ROW_SCALE, PAIRS, TERMS = range(17, 28)
RESIDUAL, OUT, GRID, PANEL = 28, 32, 36, 40  # three views, and bytes from panel to panel of the grid
A_PANEL = 41  # bytes from panel to panel of a, where each block of columns reads a step of its own
ROUND = 42  # the words of a rounding
SUMS = 47  # bytes from the start of scratch to the sums

# Flags
HAS_RESIDUAL, HAS_OUT, HAS_GRID, WIDENED, ONE_NAN, HAS_ROW_SCALE, GROUPED, THIN = 1, 2, 4, 8, 16, 32, 64, 128
