"""A model, loaded, on this machine."""
