"""Resemblyzer (arXiv 1710.10467; wheel resemblyzer, Apache-2.0): are two recordings of one speaker? 100 of LibriSpeech test-other.

Ten recordings of each of ten speakers. No others are at hand: calibration hears every fifth, and `held_out` are the other 80. The
metric is 1 - EER over all pairs of different recordings; what is resampled for its interval are recordings, since pairs that share
one are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fp8np.metrics import eer
from fp8np_studies import _audio
from fp8np_studies._folders import Folders, find

__all__ = ["calibration", "data", "held_out", "network", "pairs", "recordings", "verified"]

STRIDE = 5
WINDOW, HOP, MELS, FRAMES = 400, 160, 40, 160


def network(folders: Folders) -> Any:
    """mels (B, 160, 40) -> embeddings (B, 256) of length 1"""
    from fp8np_studies._weights import pretrained
    from fp8np_studies.networks.speaker import SpeakerEncoder

    def name(stored: str) -> str | None:
        return None if stored.startswith("similarity") else stored  # the scale and offset of the loss

    path = find(folders, "models", "resemblyzer/pretrained.pt", "Resemblyzer's weights")
    return pretrained(SpeakerEncoder(), path, key="model_state", name=name)


def data(folders: Folders) -> Iterator[Any]:
    """All 100 recordings, a batch of windows each, labelled with (speaker, recording)."""
    return _labelled(folders, slice(None))


def held_out(folders: Folders) -> Iterator[Any]:
    """The 80 that calibration does not hear."""
    return (batch for i, batch in enumerate(data(folders)) if i % STRIDE)


def calibration(folders: Folders) -> Iterator[Any]:
    """Every fifth recording, without its label."""
    return (x for x, _ in _labelled(folders, slice(None, None, STRIDE)))


def recordings(outputs: Sequence[Any], labels: Sequence[Any]) -> tuple[Any, Any]:
    """One embedding a recording, the mean over its windows: (n, 256), with (n, 2) of speaker and recording."""
    means = np.stack([output.mean(axis=0) for output in outputs])
    return means / np.linalg.norm(means, axis=1, keepdims=True), np.concatenate(labels)


def pairs(embeddings: Any, targets: Any) -> tuple[Any, Any]:
    """Likeness of each pair, and whether it is of one speaker. A recording that was drawn twice is no pair with itself."""
    i, j = np.triu_indices(len(embeddings), 1)
    speakers, numbers = np.asarray(targets).T
    pair = numbers[i] != numbers[j]
    i, j = i[pair], j[pair]
    return (embeddings @ embeddings.T)[i, j], speakers[i] == speakers[j]


def verified(embeddings: Any, targets: Any) -> float:
    """1 - EER"""
    return 1 - eer(*pairs(embeddings, targets))


def _labelled(folders: Folders, chosen: slice) -> Iterator[Any]:
    archive = find(folders, "shared", "data/librispeech_testother_10spk.zip", "the recordings of LibriSpeech")
    for number, name in list(enumerate(_audio.names(archive, ".flac")))[chosen]:
        speaker = int(name.partition("/")[0])
        yield _windows(_audio.recording(archive, name)), np.array([[speaker, number]])


def _windows(audio: Any) -> Any:
    """Mel spectrograms of overlapping stretches of 1.6 s: (stretches, FRAMES, MELS)."""
    import librosa

    rms = float(np.sqrt(np.mean(audio**2)))
    audio = audio * max(1.0, 10 ** (-30 / 20) / rms)  # quiet recordings are raised to -30 dBFS
    mel = librosa.feature.melspectrogram(y=audio, sr=_audio.RATE, n_fft=WINDOW, hop_length=HOP, n_mels=MELS).T.astype(np.float32)
    starts = range(0, max(1, len(mel) - FRAMES + 1), FRAMES // 2)
    return np.stack([np.pad(mel[s : s + FRAMES], ((0, max(0, FRAMES - len(mel[s:]))), (0, 0))) for s in starts])
