"""Makes `mtrl/nn/task_vectors.json`, which `task_encoder=language` reads: a vector for each Meta-World task.

python scripts/task_vectors.py

The text is the description of each task in `mtrl/envs/metaworld/catalog.py`, written for this project. A vector is the
TF-IDF of the words and pairs of neighbouring words of a sentence, with tf = 1 + log(count) and idf = 1 + log(50 /
number of sentences that have it), of length 1, in the coordinates of the 50 singular vectors (as in latent semantic
analysis, Deerwester et al. 1990, but with none left out: the last ones tell "locked" from "unlocked"). No sentence
encoder has seen the text: tasks are alike as far as their descriptions share words.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.metaworld.catalog import DESCRIPTIONS

PATH = Path(__file__).parents[1] / "mtrl" / "nn" / "task_vectors.json"
STOP_WORDS = {"a", "an", "and", "by", "in", "it", "its", "of", "the", "to", "until", "with", "is"}


def terms(sentence: str) -> Counter[str]:
    """Words and pairs of neighbours, without those that say nothing."""
    words = [word for word in re.findall(r"[a-z]+", sentence.lower()) if word not in STOP_WORDS]
    return Counter([*words, *map(" ".join, pairwise(words))])


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def task_vectors(descriptions: Mapping[str, str]) -> dict[str, list[float]]:
    """A vector of length 1 for each task."""
    counts = {task: terms(sentence) for task, sentence in descriptions.items()}
    sentences = Counter(term for count in counts.values() for term in count)
    vocabulary = sorted(sentences)
    tfidf = np.zeros((len(counts), len(vocabulary)))
    for row, count in zip(tfidf, counts.values(), strict=True):
        for column, term in enumerate(vocabulary):
            if count[term]:
                row[column] = (1 + np.log(count[term])) * (1 + np.log(len(counts) / sentences[term]))
    left, values, right = np.linalg.svd(unit(tfidf), full_matrices=False)
    # A singular vector's sign is arbitrary: the largest term is positive.
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
    return {task: vector.round(6).tolist() for task, vector in zip(counts, left * values * signs, strict=True)}


if __name__ == "__main__":
    found = task_vectors(DESCRIPTIONS)
    rows = [f"{json.dumps(task)}: {json.dumps(vector)}" for task, vector in found.items()]
    PATH.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
