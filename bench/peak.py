"""Run a command; then its exit code, wall time and the memory of its largest process.

python bench/peak.py make demo
"""

import resource
import subprocess
import sys
import time

started = time.perf_counter()
code = subprocess.run(sys.argv[1:], check=False).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(f"exit code {code}, {time.perf_counter() - started:.0f} s, largest process {peak / 1e9:.2f} GB")
sys.exit(code)
