"""Pictures of what was measured, in one style: drawn by matplotlib from plain values, for the report page and to stand alone.

Each module draws one kind of picture; `style` says how all of them look, and saves them. They import
matplotlib at their top, so whoever may not need a picture imports them inside the function that does.
"""
