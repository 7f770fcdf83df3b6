"""The report of a run, drawn three ways: a web page, a terminal table and a model card.

Everything here renders plain dicts (what `report.json` holds) and knows no models and no run folders. Which scores come first
is decided once, in `rows`; how a number is written, once, in `formats`.
"""
