"""Tiny models for the page of examples/space: random weights, and the words of the reviews as vocabulary."""

import json
import re
from pathlib import Path

import answers
from classifiers import imbert
from tiny import tokenizer_of


FOLDER = Path(answers.__file__).parent
REVIEWS = FOLDER.with_name("reviews.jsonl")


def save_pair(folder):
    """The folders of BERT and of IM-BERT, whose weights are equal: read with 0 iterations it answers as BERT does."""
    rows = map(json.loads, REVIEWS.read_text("utf-8").splitlines())
    words = sorted({word for row in rows for word in re.findall("[a-z]+|[.,]", row["sentence"].lower())})
    tokenizer = tokenizer_of(words, model_max_length=64)
    model = imbert(vocab_size=len(tokenizer), im_layers=[-1, 0])
    folders = folder / "bert", folder / "im-bert"
    for place, saved in zip(folders, (model.to_plain(), model), strict=True):
        saved.save_pretrained(place)
        tokenizer.save_pretrained(place)
    return folders
