"""The report of a run (`schema.Report`), drawn three ways: a web page, a terminal table and a model card.

Only `collect` knows run folders. Which scores come first is decided once, in `rows`; how a number is written, once, in `mixsd.formats`.
"""
