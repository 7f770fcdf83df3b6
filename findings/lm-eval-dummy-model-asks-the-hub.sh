#!/usr/bin/env bash
# lm-eval's `dummy` model, which computes nothing, asks the hub for another model's tokenizer before it answers.
#
# `--model dummy` is what lists a task's documents without a model. lm_eval 0.4.13 logs the tokenizer's special tokens after every
# evaluation (`add_tokenizer_info`), and the dummy model's `tokenizer` property fetches that of a 32B model from the hub. With a
# task file and data that are local, no model named and nothing to download, huggingface.co is asked all the same; without a
# network the run succeeds only after huggingface_hub's retries, some 45 s later. (Counted apart: `datasets` asks s3.amazonaws.com
# once for each local file that it loads, unless HF_UPDATE_DOWNLOAD_COUNTS=0.)
#
# Exits 0 if this is still so, 1 if it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
pip() { "$work/env/bin/python" -m pip --disable-pip-version-check install --quiet "$@"; }
pip torch==2.13.0
pip lm_eval==0.4.13 transformers==5.24.0 accelerate==1.15.0
printf '%s\n' '{"q": "1 + 1 =", "a": "2"}' '{"q": "2 + 3 =", "a": "5"}' > "$work/sums.jsonl"
cat > "$work/sums.yaml" <<YAML
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: $work/sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
metric_list: [{metric: exact_match}]
YAML
cat > "$work/run.py" <<'PYTHON'
import socket
import sys
import time
from importlib.metadata import version

asked = []


def refuse(host, *args, **kwargs):
    asked.append(str(host))
    raise OSError("no network here")


socket.getaddrinfo = refuse
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

started = time.monotonic()
manager = TaskManager(include_defaults=False)
found = simple_evaluate("dummy", tasks=[sys.argv[1]], task_manager=manager, predict_only=True, log_samples=True)
print(f"lm_eval {version('lm_eval')}: {len(found['samples']['sums'])} documents listed in {time.monotonic() - started:.0f} s,",
      f"asked: {', '.join(sorted(set(asked))) or 'nobody'}")
sys.exit(0 if set(asked) == {"huggingface.co"} and len(found["samples"]["sums"]) == 2 else 1)
PYTHON
HF_HOME="$work/hub" HF_UPDATE_DOWNLOAD_COUNTS=0 "$work/env/bin/python" "$work/run.py" "$work/sums.yaml" 2>"$work/log" ||
    { tail -5 "$work/log"; echo "changed"; exit 1; }
# Seen on 2026-11-30 (Python 3.11, torch 2.13.0+cpu):
#   lm_eval 0.4.13: 2 documents listed in 49 s, asked: huggingface.co
