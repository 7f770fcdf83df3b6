"""The report of a run (`schema.Report`), drawn as a web page, a terminal table and a model card; only `collect` knows run folders."""
