"""Silero VAD (wheel silero-vad, MIT) on five stretches of LibriVox (public domain), whose words are aligned: speech or not, each 32 ms.

Each stretch has half a second of silence before and after it, and is heard clean and in white noise of four levels: clean speech alone
would tell little, at 90 % speech. A frame is speech where its middle lies in a word; what a network says from 0.5 on counts as speech.
What is resampled for the interval is half a second in all its conditions, since neighbours are alike. Calibration hears ten sentences
of FLEURS (CC BY 4.0) in the same way.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fp8np_studies import _audio
from fp8np_studies._folders import Folders, find

__all__ = ["calibration", "data", "halves", "network", "right"]

FRAME, BEFORE = 512, 64
BLOCK = 16
"""Frames in half a second."""
CALIBRATED = 4 * BLOCK
"""Of each sentence that calibration hears, at most."""
SIGNAL_TO_NOISE = (np.inf, 20, 10, 5, 0)
"""In dB."""


def network(folders: Folders) -> Any:
    """frames (B, T, 576): the 64 samples before and the 512 of each -> probability of speech (B, T)"""
    from fp8np_studies._weights import pretrained
    from fp8np_studies.networks.silero_vad import SileroVAD

    def name(stored: str) -> str:
        cell, _, rest = stored.partition("lstm_cell.")
        return f"lstm.{rest}_l0" if rest else cell

    path = find(folders, "models", "silero_vad/data/silero_vad_16k.safetensors", "Silero VAD's weights")
    return pretrained(SileroVAD(), path, name=name)


def data(folders: Folders) -> Iterator[Any]:
    """A batch for each stretch, a row for each condition, labelled with whether its frames are speech (B, T)."""
    archive = _archive(folders)
    for seed, name in enumerate(_audio.names(archive, ".wav")):
        heard = _surrounded(_audio.recording(archive, name))
        truth = _speech(archive, name, len(heard) // FRAME)
        yield _conditions(heard, seed), np.tile(truth, (len(SIGNAL_TO_NOISE), 1))


def calibration(folders: Folders) -> Iterator[Any]:
    """Other speakers, in the same conditions."""
    archive = _archive(folders)
    for seed, name in enumerate(_audio.names(archive, ".ogg")):
        yield _conditions(_surrounded(_audio.recording(archive, name))[: CALIBRATED * FRAME], seed)


def halves(outputs: Sequence[Any], labels: Sequence[Any]) -> tuple[Any, Any]:
    """Half a second each, all its conditions: (n, conditions, BLOCK), twice."""
    return _halves(outputs), _halves(labels)


def right(probabilities: Any, truth: Any) -> float:
    """The share of frames that are told right."""
    return float(np.mean((np.asarray(probabilities) >= 0.5) == truth))


def _archive(folders: Folders) -> Path:
    return find(folders, "shared", "data/fleurs_en10_librivox5.zip", "the recordings of FLEURS and LibriVox")


def _halves(arrays: Sequence[Any]) -> Any:
    return np.concatenate([np.stack(np.split(array, array.shape[1] // BLOCK, axis=1)) for array in arrays])


def _surrounded(audio: Any) -> Any:
    """With half a second of silence before it, and as much and what fills the last half second after it."""
    block = BLOCK * FRAME
    return np.pad(audio, (block, block + -len(audio) % block))


def _speech(archive: Path, name: str, count: int) -> Any:
    """Whether the middle of each frame of a surrounded recording lies in a word: bool (count,)"""
    with zipfile.ZipFile(archive) as files:
        words = json.loads(files.read(name.replace(".wav", ".json")))["w"]
    middles = (np.arange(count) + 0.5 - BLOCK) * FRAME / _audio.RATE
    spoken = [(word["b"], word["b"] + word["d"]) for word in words if word["t"] != "<sil>"]
    return np.any([(start <= middles) & (middles < end) for start, end in spoken], axis=0)


def _conditions(audio: Any, seed: int) -> Any:
    """Frames of a recording, clean and in noise of its own: float32 (conditions, T, BEFORE + FRAME)"""
    noise = np.random.default_rng(seed).standard_normal((len(SIGNAL_TO_NOISE), len(audio)))
    loudness = np.sqrt(np.mean(audio[BLOCK * FRAME :] ** 2))
    levels = loudness * 10.0 ** (-np.array(SIGNAL_TO_NOISE)[:, None] / 20)
    waves = np.pad((audio + levels * noise).astype(np.float32), ((0, 0), (BEFORE, 0)))
    return np.lib.stride_tricks.sliding_window_view(waves, BEFORE + FRAME, axis=1)[:, ::FRAME].copy()
