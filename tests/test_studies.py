"""The workloads on pictures and sound: the networks of the checkpoints, data that are what they say, right figures."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from fp8np.data import imported  # noqa: E402
from fp8np.errors import InputError  # noqa: E402
from fp8np.interpret import interpret  # noqa: E402
from fp8np.metrics import accuracy, eer, psnr  # noqa: E402
from fp8np.model import Model  # noqa: E402
from fp8np.ptq.workflow import quantize_model  # noqa: E402
from fp8np_converters.torch_export import from_module  # noqa: E402
from fp8np_studies import crepe_tiny, efficientnet_lite0, resnet20, rnet, silero_vad, speaker, vdsr  # noqa: E402
from fp8np_studies._folders import find  # noqa: E402
from fp8np_studies.networks.crepe_tiny import PADDING, CrepeTiny  # noqa: E402
from fp8np_studies.networks.efficientnet_lite0 import EfficientNetLite0  # noqa: E402
from fp8np_studies.networks.resnet20 import ResNet20  # noqa: E402
from fp8np_studies.networks.rnet import RNet  # noqa: E402
from fp8np_studies.networks.silero_vad import SileroVAD  # noqa: E402
from fp8np_studies.networks.speaker import SpeakerEncoder  # noqa: E402
from fp8np_studies.networks.vdsr import VDSR  # noqa: E402

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def output(module: Any, x: Any) -> Any:
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def test_every_function_that_the_study_names_exists() -> None:
    workloads = tomllib.loads((ROOT / "studies" / "paper.toml").read_text(encoding="utf-8"))["workload"]
    keys = ("source", "module", "data", "calibration", "recalibration", "units", "metric")
    named = {w[key] for w in workloads for key in keys if w.get(key, "").startswith("fp8np_studies.")}
    assert len(named) >= 24
    assert all(callable(imported(text)) for text in named)


def test_data_and_metrics_need_no_torch() -> None:
    names = [p.stem for p in (ROOT / "studies").glob("*.py") if p.stem != "__init__"]
    code = f"import sys; sys.modules['torch'] = None; from fp8np_studies import {', '.join(names)}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    (tmp_path / "a").touch()
    assert find({"models": tmp_path}, "models", "?", "weights") == tmp_path / "a"
    with pytest.raises(InputError, match=r"ResNet-20's weights: expected a folder 'shared' that has models.*--folder shared=PATH"):
        resnet20.network({})
    with pytest.raises(InputError, match=f"Silero VAD's weights: expected silero_vad/.* in {tmp_path}, which is --folder models"):
        silero_vad.network({"models": tmp_path})


# As many as in the checkpoints.
@pytest.mark.parametrize(
    ("network", "count"),
    [
        (ResNet20, 269_722),
        (EfficientNetLite0, 4_652_008),
        (VDSR, 664_704),
        (SpeakerEncoder, 1_423_616),
        (SileroVAD, 309_633),
        (CrepeTiny, 486_552),
        (RNet, 100_178),
    ],
)
def test_parameters(network: Any, count: int) -> None:
    assert sum(p.numel() for p in network().parameters()) == count


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoint and the 300 pictures of examples/, as the study looks for them."""
    shared, given = tmp_path_factory.mktemp("shared"), ROOT / "examples" / "data"
    for folder, name, source in (
        ("models", "resnet20_cifar10.th", "resnet20_cifar10.th"),
        ("data", "cifar10_jpeg_test_2000.npz", "cifar10_300.npz"),
    ):
        (shared / folder).mkdir()
        (shared / folder / name).symlink_to(given / source)
    return {"shared": shared}


def test_resnet20(cifar: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnet20, "CALIBRATION", 100)
    parts = {name: list(getattr(resnet20, name)(cifar)) for name in ("data", "held_out", "calibration")}
    x, labels = (np.concatenate(part) for part in zip(*parts["data"], strict=True))
    assert x.shape == (300, 3, 32, 32)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate(parts["calibration"]), x[:100])
    np.testing.assert_array_equal(np.concatenate([batch for batch, _ in parts["held_out"]]), x[100:])

    network = resnet20.network(cifar)
    assert not network.training
    graph = from_module(network, network.example_inputs)
    logits, expected = Model(graph).run(x), output(network, x)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    # Measured: 0.813; a picture is a third of a point.
    assert accuracy(logits, labels) >= 0.805
    # Measured: 0.83 on the other 200, where FP32 has 0.81.
    quantized = Model(quantize_model(graph, "e4m3", resnet20.calibration(cifar), report_batches=0).graph)
    assert accuracy(quantized.run(x[100:]), labels[100:]) >= accuracy(logits[100:], labels[100:]) - 0.02


def pictures(shared: Path, count: int) -> Any:
    """An archive of `count` pictures of one colour each."""
    image = pytest.importorskip("PIL.Image")
    (shared / "data").mkdir(parents=True)
    colours = np.random.default_rng(0).integers(0, 256, (count, 3), np.uint8)
    with zipfile.ZipFile(shared / "data" / "imagenet_even500.zip", "w") as archive:
        for i in reversed(range(count)):
            with archive.open(f"{2 * i:04}_n{i:08}.jpg", "w") as file:
                image.fromarray(np.broadcast_to(colours[i], (260, 260, 3))).save(file, "jpeg", quality=100, subsampling=0)
    return colours


def test_efficientnet_sees_each_picture_with_its_label(tmp_path: Path) -> None:
    colours = pictures(tmp_path, 12)
    folders = {"shared": tmp_path}
    x, labels = (np.concatenate(part) for part in zip(*efficientnet_lite0.data(folders), strict=True))
    assert x.shape == (12, 3, 224, 224)
    assert labels.tolist() == list(range(0, 24, 2))
    np.testing.assert_allclose(x.mean((2, 3)), (colours - 127.0) / 128, atol=0.03)
    np.testing.assert_array_equal(np.concatenate(list(efficientnet_lite0.calibration(folders))), x[[0, 5, 10]])
    held, names = (np.concatenate(part) for part in zip(*efficientnet_lite0.held_out(folders), strict=True))
    assert names.tolist() == [2, 4, 6, 8, 12, 14, 16, 18, 22]
    np.testing.assert_array_equal(held, np.delete(x, [0, 5, 10], axis=0))


def test_super_resolution_of_flat_pictures(tmp_path: Path) -> None:
    colours = pictures(tmp_path, 20).astype(float)
    (blurred, sharp), *others = vdsr.data({"shared": tmp_path})
    assert not others
    assert sharp.shape == blurred.shape == (2, 1, 128, 128)
    # BT.601 in fractions of full scale; JPEG moves a colour by a step or so.
    expected = (16 + colours[[0, 12]] @ (0.299, 0.587, 0.114) * 219 / 255) / 255
    np.testing.assert_allclose(sharp.mean((1, 2, 3)), expected, atol=2 / 255)
    np.testing.assert_allclose(blurred, sharp, atol=1e-6)
    (calibration,) = vdsr.calibration({"shared": tmp_path})
    assert len(calibration) == 2


def test_luminance_and_interpolation() -> None:
    pytest.importorskip("PIL")
    ends = np.array([[[0, 0, 0], [255, 255, 255]]])
    assert vdsr.luminance(ends).tolist() == [[16, 235]]
    ramp = np.broadcast_to(np.arange(16, dtype=np.float32) * 8 + 50, (16, 16)).copy()
    # Bicubic interpolation keeps straight lines, but for the borders.
    np.testing.assert_allclose(vdsr.interpolated(ramp)[:, 5:-5], ramp[:, 5:-5], atol=0.6)
    noise = np.random.default_rng(0).uniform(0, 255, (16, 16)).astype(np.float32)
    assert np.abs(vdsr.interpolated(noise) - noise).mean() > 20


def test_psnr_is_of_each_picture_without_its_border() -> None:
    truth = np.random.default_rng(0).uniform(0.2, 0.8, (2, 1, 9, 9))
    shown = truth + np.array([0.1, 0.01]).reshape(2, 1, 1, 1)
    shown[:, :, :2] = shown[:, :, :, -2:] = 7  # in the border
    assert vdsr.mean_psnr(shown, truth) == pytest.approx((20 + 40) / 2)
    assert vdsr.mean_psnr(np.full((1, 1, 5, 5), 3.0), np.full((1, 1, 5, 5), 0.9)) == pytest.approx(psnr([1.0], [0.9]))


def test_a_recording_is_no_pair_with_itself() -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((6, 4))
    labels = [np.array([[i // 2, i]]) for i in range(6)]
    vectors, targets = speaker.recordings([np.stack([e + 1, e - 1]) for e in embeddings], labels)
    np.testing.assert_allclose(vectors, embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))
    scores, same = speaker.pairs(vectors, targets)
    assert len(scores) == 15
    assert same.sum() == 3
    assert speaker.verified(vectors, targets) == 1 - eer(scores, same)
    drawn = [0, 0, 1, 2, 3]
    again, alike = speaker.pairs(vectors[drawn], targets[drawn])
    assert len(again) == 9
    assert alike.sum() == 3  # 0 with 1, twice, and 2 with 3
    np.testing.assert_allclose(again[alike], [vectors[0] @ vectors[1]] * 2 + [vectors[2] @ vectors[3]])


def wav(samples: Any) -> bytes:
    file = io.BytesIO()
    pytest.importorskip("soundfile").write(file, samples, 16000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def test_recordings_become_windows(tmp_path: Path) -> None:
    pytest.importorskip("librosa")
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "data" / "librispeech_testother_10spk.zip", "w") as archive:
        for name, seconds in (("7/7-b.flac", 1), ("7/7-a.flac", 3.3)):
            archive.writestr(name, wav(rng.normal(0, 1e-3, int(seconds * 16000))))  # -60 dBFS
    (long, first), (short, second) = speaker.data({"shared": tmp_path})
    assert (long.shape, short.shape) == ((3, 160, 40), (1, 160, 40))
    assert (first.tolist(), second.tolist()) == ([[7, 0]], [[7, 1]])
    assert (short[0, 101:] == 0).all()
    # Raised to -30 dBFS: white noise of power 1e-3 fills a window of 400 samples, whose squares add up to 150, and triangles of area 1
    # (by Slaney's normalization; a bin is 40 Hz wide).
    np.testing.assert_allclose(long.mean(), 150 * 1e-3 / 40, rtol=0.1)


def published_silero(network: SileroVAD, frames: Any) -> Any:
    """A frame at a time, as the network was published."""
    cell = nn.LSTMCell(128, 128)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in network.lstm.state_dict().items()})
    state, said = None, []
    for frame in frames.unbind(1):
        spectrum = network.stft_conv(F.pad(frame[:, None], (0, 64), "reflect"))
        x = torch.hypot(spectrum[:, :129], spectrum[:, 129:])
        for conv in (network.conv1, network.conv2, network.conv3, network.conv4):
            x = F.relu(conv(x))
        state = cell(x[:, :, 0], state)
        said.append(torch.sigmoid(network.final_conv(F.relu(state[0])[:, :, None]))[:, 0, 0])
    return torch.stack(said, 1)


def test_silero_says_the_same_of_many_frames_at_once() -> None:
    network = SileroVAD().eval()
    frames = torch.randn(2, 5, 576)
    with torch.no_grad():
        expected = published_silero(network, frames).numpy()
    assert np.ptp(expected) > 1e-3
    graph = from_module(network, network.example_inputs, dynamic={"frames": {0: "B", 1: "T"}})
    np.testing.assert_allclose(output(network, frames.numpy()), expected, atol=1e-6)
    np.testing.assert_allclose(interpret(graph, {"frames": frames.numpy()}), expected, atol=1e-6)


def test_speech_is_where_words_are(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    audio = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    words = [{"b": 0.0, "d": 0.2, "t": "<sil>"}, {"b": 0.2, "d": 0.3, "t": "and(2)"}]
    with zipfile.ZipFile(tmp_path / "data" / "fleurs_en10_librivox5.zip", "w") as archive:
        archive.writestr("x.wav", wav(audio))
        archive.writestr("x.json", json.dumps({"w": words}))
        archive.writestr("y.ogg", wav(audio))
    folders = {"shared": tmp_path}
    ((frames, truth),) = silero_vad.data(folders)
    # Half a second before, one second, half a second after, and what fills the last half: 16 frames each.
    assert frames.shape == (5, 64, 576)
    assert truth.shape == (5, 64)
    times = (np.flatnonzero(truth[0]) + 0.5) * 0.032 - 0.512
    assert (times.min() >= 0.2, times.max() < 0.5, len(times)) == (True, True, 10)
    np.testing.assert_array_equal(frames[:, 1:, :64], frames[:, :-1, -64:])  # what was before
    clean, *noisy = frames[:, :, 64:].reshape(5, -1)
    np.testing.assert_allclose(clean[8192 : 8192 + 16000], audio, atol=1e-4)
    loudness = np.sqrt(np.mean(clean[8192:] ** 2))
    levels = [20 * np.log10(loudness / np.std(wave - clean)) for wave in noisy]
    np.testing.assert_allclose(levels, [20, 10, 5, 0], atol=0.2)
    (calibration,) = silero_vad.calibration(folders)
    assert calibration.shape == (5, 64, 576)
    said, right = silero_vad.halves([truth * 0.5], [truth])
    assert said.shape == (4, 5, 16)
    assert silero_vad.right(said, right) == 1
    assert silero_vad.right(said * 0.99, right) == 1 - truth.mean()


def test_tones_have_their_pitch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crepe_tiny, "SIGNAL_TO_NOISE", (60.0, 60.0))
    waves, truth = crepe_tiny.tones(30, seed=3)
    assert waves.shape == (30, 1024)
    np.testing.assert_allclose(waves.std(1), 1, rtol=1e-5)
    for wave, cents in zip(waves, truth, strict=True):
        frequency = 10 * 2 ** (cents / 1200)
        harmonics = np.arange(1, 8000 // frequency + 1)[:, None] * 2 * np.pi * frequency * np.arange(1024) / 16000
        waves_of_it = np.concatenate([np.cos(harmonics), np.sin(harmonics), np.ones((1, 1024))])
        _, left, *_ = np.linalg.lstsq(waves_of_it.T, wave.astype(np.float64))
        assert left < 0.01 * 1024
        assert 65 <= frequency <= 1500


def test_pitch_is_the_mean_around_the_peak() -> None:
    likely = np.zeros((3, 360), np.float32)
    likely[0, 200] = likely[1, 0] = likely[2, 100] = likely[2, 101] = 0.5
    likely[2, 359] = 0.4  # too far from the peak to count
    truth = crepe_tiny.PITCHES[[200, 0, 100]] + [0, 0, 10]
    np.testing.assert_allclose(crepe_tiny.cents(likely), truth, rtol=1e-6)
    assert crepe_tiny.pitch_accuracy(likely, truth + np.array([49, -49, 51])) == pytest.approx(2 / 3)
    assert 10 * 2 ** (crepe_tiny.PITCHES[0] / 1200) == pytest.approx(31.70, abs=0.01)


def test_crepe_is_what_its_checkpoint_says() -> None:
    network = CrepeTiny().eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.05, 0.2)
    x = torch.randn(3, 1024)
    y = x[:, None, :, None]  # pictures one pixel wide
    for i, padding in enumerate(PADDING, 1):
        conv, norm = getattr(network, f"conv{i}"), getattr(network, f"conv{i}_BN")
        y = F.relu(F.conv2d(F.pad(y, (0, 0, *padding)), conv.weight[..., None], conv.bias, (conv.stride[0], 1)))
        y = F.max_pool2d(F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-3), (2, 1))
    expected = torch.sigmoid(network.classifier(y.permute(0, 2, 1, 3).reshape(3, -1))).detach().numpy()
    assert expected.std() > 1e-3
    np.testing.assert_allclose(output(network, x.numpy()), expected, atol=1e-6)


def test_faces_in_all_conditions(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "data").mkdir()
    stored = np.random.default_rng(0).uniform(0, 1, (200, 25, 25))
    np.save(tmp_path / "data" / "lfw_subset.npy", stored)
    batches = list(rnet.data({"shared": tmp_path}))
    x = np.concatenate([batch for batch, _ in batches])
    assert x.shape == (800, 3, 24, 24)
    np.testing.assert_allclose(x[5, 0], (stored[2, :24, :24] * 255 - 127.5) / 128, atol=1e-5)  # the second that is scored, as it is
    assert np.std(x[::5] - x[1::5]) < np.std(x[::5] - x[2::5])
    assert x[4::5].var() < x[3::5].var() < x[::5].var()
    seen = np.concatenate(list(rnet.calibration({"shared": tmp_path})))
    assert seen.shape == (200, 3, 24, 24)
    assert not {image.tobytes() for image in seen} & {image.tobytes() for image in x}
    outputs = [np.stack([1 - label, label * 0.7], axis=1) for _, label in batches]
    likely, faces = rnet.pictures(outputs, [label for _, label in batches])
    assert likely.shape == faces.shape == (160, 5)
    assert faces.sum(axis=0).tolist() == [80] * 5
    assert rnet.detected(likely, faces) == rnet.auc(likely, faces) == 1
    assert rnet.detected(likely * 0.99, faces) == 0.5
    assert rnet.auc([[0.1, 0.4], [0.4, 0.3]], np.array([[False, True], [False, False]])) == pytest.approx(2.5 / 3)


@pytest.mark.skipif(not (SHARED / "models" / "vdsr.pt").exists(), reason="needs VDSR's weights")
def test_vdsr_sharpens() -> None:
    pytest.importorskip("PIL")
    folders = {"shared": SHARED}
    x, truth = (part[:2] for part in next(iter(vdsr.data(folders))))
    gained = vdsr.mean_psnr(output(vdsr.network(folders), x), truth) - vdsr.mean_psnr(x, truth)
    assert gained > 0.5
