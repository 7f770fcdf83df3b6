"""Make `src/mixsd/data/words.txt`: the words that an invented name must not be.

    python bench/word_list.py

They are the built-in model's own (SmolLM2, Apache-2.0): whatever word of four letters or more its vocabulary has as one token was
frequent in what it was trained on, and that includes the names of people and places. One lower-case word per line, sorted.
"""

from __future__ import annotations

import re
from pathlib import Path

from mixsd.models import loading

OUTPUT = Path(__file__).parent.parent / "src" / "mixsd" / "data" / "words.txt"


def main() -> None:
    tokenizer = loading.load_tokenizer(loading.locate("smollm2-135m").folder)
    found = {match[1].lower() for token in tokenizer.get_vocab() if (match := re.fullmatch(r"Ġ([A-Za-z]{4,})", token))}
    OUTPUT.write_text("".join(word + "\n" for word in sorted(found)), encoding="utf-8")
    print(f"{len(found)} words in {OUTPUT}")


if __name__ == "__main__":
    main()
