"""Makes src/mixsd/data/published/ from the text of the paper: its tables as numbers, one row per model, method and lambda.

    python bench/published.py ../shared/paper/paper.txt

The text lost every formula, lambda with them: which row has which is known from the drops that Table 5 prints (Tables 1, 2, 4, 5, 10
and the last row of Table 12) and inferred elsewhere, which the column `lambda_known` tells apart. What else was lost (the rollouts and
temperatures of OPSD's and MixSD-KL's variants) is told apart by a number in `variant` only, in the order of the rows.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "src" / "mixsd" / "data" / "published"
BENCHMARKS = ["aime24", "math500", "gsm8k", "humaneval", "mmlu", "average"]
MODELS = {
    "Qwen3-1.7B": "Qwen/Qwen3-1.7B",
    "Qwen3-4B-It": "Qwen/Qwen3-4B-Instruct-2507",
    "Qwen3-8B": "Qwen/Qwen3-8B",
    "Llama-3.2-1B-It": "meta-llama/Llama-3.2-1B-Instruct",
}
METHODS = {"Base": "base", "SFT": "sft", "OPSD": "opsd", "OPSD-fwdKL": "opsd", "OPSD-NLL": "opsd-nll", "MixSD": "mixsd"}
METHODS |= {"MixSD-KL": "mixsd-kl", "MEMIT": "memit"}
FOUR, THREE, TWO = ("0", "0.3", "0.5", "0.7"), ("0", "0.3", "0.5"), ("0.3", "0.5")

# Number: (corpus, columns, lambdas of a model's MixSD rows, whether these are known).
ACCURACY = {
    1: ("kgfact:small", ["train", "retrieval", *BENCHMARKS], FOUR, True),
    2: ("kgfunc", ["test", "unseen", *BENCHMARKS], THREE, True),
    3: ("kgfact:large", ["train", "retrieval", *BENCHMARKS], THREE, False),
    4: ("simpleqa", ["train", *BENCHMARKS], TWO, True),
    10: ("kgfact:small", ["train", "retrieval", *BENCHMARKS], FOUR, True),
    11: ("mquake", ["train", "retrieval", *BENCHMARKS], THREE, False),
    12: ("kgfact:small", ["train", "retrieval", *BENCHMARKS], ("0",), True),
}
CORPORA = ["kgfact:small", "kgfunc", "simpleqa"]  # Table 5's three parts
NAMES = {"KGFact-Small": "kgfact:small", "KGFact-Large": "kgfact:large", "SimpleQA": "simpleqa", "KGFunc": "kgfunc"}


def tables(text: str) -> list[list[list[str]]]:
    """The blocks of consecutive lines that begin with a bar, as cells without the bars; those of formulas are left out."""
    blocks: list[list[list[str]]] = []
    last = -2
    for number, line in enumerate(text.splitlines()):
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        while cells and not cells[-1]:  # a row under a model that was named above
            cells.pop()
        if number != last + 1 or "Method" in cells or cells[:2] == ["Dataset", "Model"]:
            blocks.append([])
        blocks[-1].append(cells)
        last = number
    return [block for block in blocks if len(block) > 2]


def accuracy(number: int, block: list[list[str]]) -> list[dict[str, str]]:
    corpus, columns, lambdas, known = ACCURACY[number]
    rows: list[dict[str, str]] = []
    model, mixed, met = "", iter(()), Counter()
    for line in block:
        cells = line
        if cells[0] in MODELS:
            model, mixed, met = MODELS[cells[0]], iter(lambdas), Counter()
            cells = cells[1:]
        values = cells[1:]
        if not model or not all(re.fullmatch(r"-?[\d.]+", value) for value in values):
            continue
        method = METHODS[cells[0].split(" (")[0]]
        if len(values) != len(columns):
            raise SystemExit(f"table {number}: {cells} has not {len(columns)} numbers")
        lam = next(mixed) if method == "mixsd" else "0" if method == "mixsd-kl" else ""
        met[method] += 1
        known_here = "" if not lam else "yes" if known and method == "mixsd" else "inferred"
        variant = "" if method in ("mixsd", "base") or (met[method] == 1 and method != "mixsd-kl") else str(met[method])
        head = {"corpus": corpus, "model": model, "method": method, "lambda": lam, "lambda_known": known_here, "variant": variant}
        rows.append(head | dict(zip(columns, values, strict=True)))
    return rows


def displacement(block: list[list[str]]) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    model, mixed = "", iter(())
    for line in block:
        cells = line
        if cells[0] in MODELS:
            model, mixed = MODELS[cells[0]], iter(TWO)
            cells = cells[1:]
        method = METHODS.get(cells[0].split(" (")[0])
        if not model or method is None or len(cells) != 10:
            continue
        lam = next(mixed) if method == "mixsd" else ""
        for place, corpus in enumerate(CORPORA):
            names = ("displacement", "alignment", "drop")
            values = dict(zip(names, cells[1 + 3 * place : 4 + 3 * place], strict=True))
            head = {"corpus": corpus, "model": model, "method": method, "lambda": lam, "lambda_known": "yes" if lam else ""}
            rows.append(head | values)
    return rows


def correlation(block: list[list[str]]) -> list[dict[str, str]]:
    names = ("checkpoints", "r_displacement", "r_alignment")
    return [{"model": MODELS[cells[0]], **dict(zip(names, cells[1:], strict=True))} for cells in block if cells[0] in MODELS]


def tokens(block: list[list[str]], *, overlap: bool) -> list[dict[str, str]]:
    rows = []
    corpus = ""
    for line in block:
        cells = line
        if cells[0] in NAMES:
            corpus, cells = NAMES[cells[0]], cells[1:]
        if not corpus or cells[0] not in MODELS:
            continue
        settings = [("mixsd", lam) for lam in THREE] if overlap else [("sft", ""), *(("mixsd", lam) for lam in THREE)]
        for (method, lam), cell in zip(settings, cells[1:], strict=True):
            head = {"corpus": corpus, "model": MODELS[cells[0]], "method": method, "lambda": lam}
            head["lambda_known"] = "inferred" if lam else ""
            match = re.fullmatch(r"(?:(\d+) \()?([\d.]+)%\)?", cell)
            if match is None:
                raise SystemExit(f"{cells}: {cell!r} is no count with its share")
            rows.append(head | ({"overlap": match[2]} if overlap else {"count": match[1], "share": match[2]}))
    return rows


def main() -> None:
    found = tables(Path(sys.argv[1]).read_text(encoding="utf-8"))
    order = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]  # that of the text
    blocks = [block for block in found if block[0][0] in ("Model", "Dataset")]
    if len(blocks) != len(order):
        raise SystemExit(f"{len(blocks)} tables where {len(order)} were expected")
    FOLDER.mkdir(exist_ok=True)
    for number, block in zip(order, blocks, strict=True):
        if number in ACCURACY:
            rows = accuracy(number, block)
        elif number == 5:
            rows = displacement(block)
        elif number == 6:
            rows = correlation(block)
        else:
            rows = tokens(block, overlap=number == 9)
        with (FOLDER / f"table-{number:02}.tsv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(f"table {number}: {len(rows)} rows")


if __name__ == "__main__":
    main()
