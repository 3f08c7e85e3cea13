"""Verification of FP8 arithmetic: fp8np itself, other libraries, and anybody's implementation, against one law."""
