"""Resemblyzer's speaker encoder (arXiv 1710.10467; wheel resemblyzer, Apache-2.0): LSTM embeddings, verification on LibriSpeech."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import nn

from fp8np.metrics import eer
from fp8np_benchmarks.workloads import Workload, need
from fp8np_converters.checkpoint import read_state_dict
from fp8np_converters.torch_export import from_module

RATE, WINDOW, HOP, MELS, FRAMES = 16000, 400, 160, 40, 160


class SpeakerEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        _, (hidden, _) = self.lstm(mels)
        return F.normalize(F.relu(self.linear(hidden[-1])), dim=1)


def windows(audio: Any) -> Any:
    """Mel spectrograms of overlapping stretches of 1.6 s: (stretches, FRAMES, MELS)."""
    rms = float(np.sqrt(np.mean(audio**2)))
    audio = audio * max(1.0, 10 ** (-30 / 20) / rms)  # quiet recordings are raised to -30 dBFS
    mel = librosa.feature.melspectrogram(y=audio, sr=RATE, n_fft=WINDOW, hop_length=HOP, n_mels=MELS).T.astype(np.float32)
    starts = range(0, max(1, len(mel) - FRAMES + 1), FRAMES // 2)
    return np.stack([np.pad(mel[s : s + FRAMES], ((0, max(0, FRAMES - len(mel[s:]))), (0, 0))) for s in starts])


def workload(shared: Path, models: Path) -> Workload:
    checkpoint = need(models / "resemblyzer" / "pretrained.pt", "Resemblyzer weights (unpacked wheel)")
    archive = need(shared / "data" / "librispeech_testother_10spk.zip", "LibriSpeech recordings")
    with zipfile.ZipFile(archive) as files:
        names = sorted(name for name in files.namelist() if name.endswith(".flac"))
        recordings = [windows(soundfile.read(io.BytesIO(files.read(name)), dtype="float32")[0]) for name in names]
    speakers = np.array([name.split("/")[0] for name in names])

    def module() -> nn.Module:
        model = SpeakerEncoder().eval()
        stored = read_state_dict(checkpoint, key="model_state")
        model.load_state_dict({name: torch.from_numpy(np.array(stored[name])) for name in model.state_dict()})
        return model

    def score(outputs: list[Any]) -> float:
        means = np.stack([output.mean(axis=0) for output in outputs])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        i, j = np.triu_indices(len(means), 1)
        return eer((means[i] * means[j]).sum(axis=1), speakers[i] == speakers[j])

    def batches() -> Iterator[Any]:
        yield from recordings

    return Workload(
        name="Resemblyzer, LibriSpeech",
        metric="EER",
        module=module,
        graph=lambda: from_module(module(), (recordings[0][:2],), name="resemblyzer"),
        calibration=lambda: recordings[::5],
        batches=batches,
        score=score,
        logits=lambda output: output,
    )
