"""Editing facts into a model's weights in closed form, without training. See `memit` for the design; `edit` is the way in."""

from mixsd.editing.edits import MemitConfig, layers_of
from mixsd.editing.memit import EditResult, FactEdit, edit
from mixsd.editing.parts import Moments, paragraphs, second_moments

__all__ = ["EditResult", "FactEdit", "MemitConfig", "Moments", "edit", "layers_of", "paragraphs", "second_moments"]
