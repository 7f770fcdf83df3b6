"""Token ids and logits: decoding under one conditional or two. It knows no text and no files.

`oracle` is the definition, one row at a time and without any cache; `lockstep` is the batched path that gives its tokens;
`scoring` reads given continuations.
"""
