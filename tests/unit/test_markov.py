"""Majority letter and two-sided Markov model against naive counting."""

from collections import Counter, defaultdict

import numpy as np

from data_prep import alphabet
from trainer.evaluation import markov

COMPLEMENT = {0: 3, 1: 2, 2: 1, 3: 0}


def naive_counts(blocks: list[np.ndarray]) -> Counter[tuple[int, ...]]:
    counts: Counter[tuple[int, ...]] = Counter()
    for codes in blocks:
        for start in range(len(codes) - 8):
            word = tuple(codes[start : start + 9].tolist())
            if max(word) < 4:
                counts[word] += 1
                counts[tuple(COMPLEMENT[c] for c in reversed(word))] += 1
    return counts


def blocks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.choice(5, size, p=[0.4, 0.2, 0.2, 0.19, 0.01]).astype(np.uint8) for size in (700, 5, 9, 400)]


def test_counts_equal_naive_counting_on_both_strands() -> None:
    letters, kmers = markov.count_letters_and_contexts(blocks())
    assert letters.tolist() == [int((np.concatenate(blocks()) == c).sum()) for c in range(4)]
    expected = naive_counts(blocks())
    cube = kmers.reshape((4,) * 9)
    assert kmers.sum() == sum(expected.values())
    assert all(cube[word] == count for word, count in expected.items())


def test_prediction_backs_off_to_the_visible_letters() -> None:
    counted = naive_counts(blocks())
    model = markov.Markov(markov.count_letters_and_contexts(blocks())[1])
    rng = np.random.default_rng(1)
    contexts = rng.integers(0, 4, (300, 8))
    contexts[rng.random((300, 8)) < 0.8] = rng.choice([alphabet.N, alphabet.MASK, alphabet.PAD])
    predicted = model.predict(contexts.copy())
    for context, letter in zip(contexts.tolist(), predicted, strict=True):
        votes: dict[int, int] = defaultdict(int)
        for word, count in counted.items():
            around = word[:4] + word[5:]
            if all(c > 3 or c == a for c, a in zip(context, around, strict=True)):
                votes[word[4]] += count
        if votes:
            assert votes[int(letter)] == max(votes.values())


def test_unseen_context_loses_its_outer_letters() -> None:
    codes = np.array([0, 0, 0, 0, 2, 1, 1, 1, 1], np.uint8)
    model = markov.Markov(markov.count_letters_and_contexts([codes])[1])
    assert model.predict(np.array([[3, 0, 0, 0, 1, 1, 1, 3]])).tolist() == [2]
    assert model.predict(np.array([[0, 0, 0, 0, 1, 1, 1, 1]])).tolist() == [2]


def test_contexts_are_the_neighbours() -> None:
    visible = np.arange(12, dtype=np.uint8)
    assert markov.contexts(visible)[1].tolist() == [1, 2, 3, 4, 6, 7, 8, 9]
