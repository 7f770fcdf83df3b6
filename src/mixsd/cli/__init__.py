"""The command line: parse, call, render; no logic of its own.

`commands` (one run), `runs` (many) and `data` hold one function per command, its flags beside; `options` makes flags from
`mixsd.settings`, `show` writes results and progress, and `entry` turns every way of ending into one line and an exit code:

    0 done    1 failed    2 bad input or usage    3 a --require condition missed    130, 143 interrupted, terminated
"""

from mixsd.cli.entry import main

__all__ = ["main"]
