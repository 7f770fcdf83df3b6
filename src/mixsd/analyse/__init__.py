"""Why a method works: how likely the base model finds what is trained on, where an update goes, and what wrong replies are like.

A peer of mixing, training, editing and evaluation: it knows tensors, numbers and text, no run folders. What reads a run folder,
writes there and draws is in `pipeline/analyses`.

`mixsd analyze ...`: the analyses of `mixsd.analyse` over run folders, each with its numbers, its table and its figures as files.
"""

from __future__ import annotations
