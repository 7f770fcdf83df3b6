"""One tiny model and its tokenizer for the tests of mixing, made once per file."""

import pytest

from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model("llama", vocab=len(tokenizer))
