"""Why a method works: how likely the base model finds what is trained on, where an update goes, and what wrong replies are like.

`mixsd analyze ...`: analyses of run folders, each with its numbers, its table and its figures as files.
"""
