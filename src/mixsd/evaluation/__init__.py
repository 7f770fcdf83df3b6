"""What a model knows and still does: the same questions, rendering, decoding and scoring for base and tuned."""
