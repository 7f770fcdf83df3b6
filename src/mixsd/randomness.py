"""Addressed randomness: every random number is a pure function of where it is used, never of what was drawn before.

An address is (seed, purpose, fact key, sample, attempt) and names a stream; the position is the index in it. So a number
does not depend on batch size, slot, order, worker, crash or resume. A coin is naive when its number is below lambda, with the
numbers themselves independent of lambda: a position that is naive at 0.3 is naive at 0.5.

The bits come from Philox keyed by a BLAKE2 hash of the address; the conversion to [0, 1) is spelled out here so that no
library's change of mind can alter a result.
"""

import hashlib
from typing import Any, Literal, get_args

import numpy as np

Purpose = Literal["coin", "noise", "rehearsal", "rollout", "forgetting", "evaluation", "order"]
PURPOSES: tuple[str, ...] = get_args(Purpose)


def uniforms(seed: int, purpose: Purpose, key: str, *, sample: int = 0, attempt: int = 0, n: int) -> np.ndarray:
    """Return the first `n` numbers of one stream, float64 in [0, 1), shape (n,).

    A longer request has a shorter one as its prefix, so position t is always the same number.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"unknown purpose {purpose!r}; known: {', '.join(PURPOSES)}")
    # The length before the key keeps any two different addresses from being the same text.
    address = f"{seed}|{purpose}|{len(key)}|{key}|{sample}|{attempt}"
    key_of_stream = _Key(hashlib.blake2b(address.encode(), digest_size=16).digest())
    bits = np.random.Philox(key_of_stream).random_raw(n)  # type: ignore[arg-type] # an ISeedSequence is one too
    return (np.asarray(bits, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class _Key(np.random.bit_generator.ISeedSequence):
    """A key given as a key: `Philox(key=...)` would draw from the system's entropy first, only to overwrite it."""

    def __init__(self, digest: bytes) -> None:
        self._words = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> np.ndarray:
        """The key as its two 64-bit words, which is all that Philox asks for."""
        assert (n_words, np.dtype(dtype)) == (2, np.dtype(np.uint64))
        return self._words


def coins(seed: int, key: str, *, lam: float, sample: int = 0, attempt: int = 0, n: int) -> np.ndarray:
    """Return the first `n` coins of one attempt, bool, shape (n,): True where the naive conditional is picked (Eq. 4)."""
    return uniforms(seed, "coin", key, sample=sample, attempt=attempt, n=n) < lam


def order(seed: int, keys: list[str], *, epoch: int) -> list[int]:
    """Return the indices of `keys` in the shuffled order of one epoch; each key's place is drawn at its own address."""
    draws = [uniforms(seed, "order", key, attempt=epoch, n=1)[0] for key in keys]
    return sorted(range(len(keys)), key=lambda index: (draws[index], keys[index]))
