"""A method, a benchmark, a corpus and a decoding engine outside of mixsd: one file each, named on the command line."""
