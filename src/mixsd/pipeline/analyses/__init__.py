"""`mixsd analyze ...`: the analyses of `mixsd.analysis` over run folders, each with its numbers, its table and its figures as files."""
