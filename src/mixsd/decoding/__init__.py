"""Token ids and logits: decoding under one conditional or two. It knows no text and no files.

`oracle` is the definition, one row at a time and without any cache; `engine` is the decoder that gives its tokens, by
`continuous` or in lock-step batches, and reads given continuations.
"""
