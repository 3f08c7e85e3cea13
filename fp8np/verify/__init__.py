"""Verification of FP8 arithmetic: fp8np itself, other libraries, and anybody's implementation, against one law.

>>> from fp8np.verify import verify
>>> verify(formats=["e4m3fn"], suites=["decode"]).clean
True
"""

from __future__ import annotations

from fp8np.verify._result import Difference, Report, Row
from fp8np.verify.suite import SUITES, verify

__all__ = ["SUITES", "Difference", "Report", "Row", "verify"]
