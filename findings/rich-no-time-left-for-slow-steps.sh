#!/usr/bin/env bash
# A bar of rich whose steps take longer than `speed_estimate_period` (30 s by default) never has a speed or a time remaining.
#
# rich 15.0.0 drops every sample that is older than the period before it adds the new one, and needs two samples for a speed. A
# training whose steps take 31 s therefore shows "-:--:--" from its first step to its last, however many it has done; at 29 s it
# has both from the second step on. No option takes the pace over a number of steps; only a longer period helps.
#
# Exits 0 if this is still so, 1 if it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/python" -m pip --disable-pip-version-check install --quiet rich==15.0.0
cat > "$work/bar.py" <<'PYTHON'
import sys
from importlib.metadata import version

from rich.progress import Progress


def known(seconds):
    """At how many of 99 steps, each of so many seconds, the bar knows its speed and the time remaining."""
    now = 0.0
    bar = Progress(disable=True, get_time=lambda: now)
    key = bar.add_task("training", total=100)
    told = []
    for step in range(1, 100):
        now = step * seconds
        bar.update(key, completed=step)
        (task,) = bar.tasks
        told.append(task.speed is not None and task.time_remaining is not None)
    return sum(told)


found = {seconds: known(seconds) for seconds in (29.0, 31.0)}
print(f"rich {version('rich')}:", *(f"steps of {seconds:g} s: known at {count} of 99" for seconds, count in found.items()), sep="\n  ")
sys.exit(0 if found[29.0] > 90 and found[31.0] == 0 else 1)
PYTHON
"$work/env/bin/python" "$work/bar.py" || { echo "changed"; exit 1; }
# Seen on 2026-11-30 (Python 3.11):
#   rich 15.0.0:
#     steps of 29 s: known at 98 of 99
#     steps of 31 s: known at 0 of 99
