"""Targets: how a fact becomes the token ids that are trained on, mixed (the method) or canonical (the reference as it is)."""
