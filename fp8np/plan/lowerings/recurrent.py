"""lstm, gru and their cells: not lowered yet, so they run as defined, on floats.

With FP8 x and matrices, what multiplies weight_hh, and from the second layer on weight_ih, is to be rounded to the format of x, with
one fixed scale, which no calibration needs to find.
"""

from __future__ import annotations

from typing import Any

# The scale of h. After the first step |h| <= max(1, |initial h|), since o * tanh(c) is within 1, and a mean of tanh(...) and h within
# the larger of them. So the scale is the one for that bound (`fp8np.scaling.scale_for`); but five exponent bits hold [-1, 1] down to
# 2**-14 as it stands, and then it is 1: a direct cast, as the paper's E5M2 is. h is rounded at each step for the product alone: a GRU's
# mean with the old h takes h itself. Nothing but the state passes between steps, so handing it on gives the bits of the whole.
LOWERINGS: dict[str, Any] = {}
