"""One run from facts to report: what joins mixing, training and evaluation lives here."""
