"""Retries: where one begins after an attempt that broke, and attempts that are decoded before their turn."""

import itertools

import pytest

from mixsd.decoding import continuous
from mixsd.decoding.requests import Decoding
from mixsd.settings import Settings
from mixsd.storage import Journal
from mixsd.targets import attempts as targets_attempts
from mixsd.targets.attempts import Case, break_at, record
from tests.targets.helpers import FACTS, essence, mixer


class TestRetryFromBreak:
    """Beyond the paper: a retry keeps what came before the naive token that broke the last attempt."""

    @pytest.mark.parametrize("gate", [0.0, 0.3])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_budget_order_and_interruption_change_nothing(self, model, tokenizer, tmp_path, temperature, gate):
        options = {"temperature": temperature, "gate": gate, "lam": 0.5, "retry": "from-break", "samples": 2}
        wanted = essence(mixer(model, tokenizer, tmp_path, **options).run(FACTS[:5]))
        assert (
            essence(mixer(model, tokenizer, tmp_path, journal="b.jsonl", token_budget=1000, **options).run(FACTS[:5])) == wanted
        )
        shuffled = mixer(model, tokenizer, tmp_path, journal="s.jsonl", **options).run(FACTS[4::-1])
        assert sorted(essence(shuffled)) == sorted(wanted)
        whole = (tmp_path / "attempts.jsonl").read_bytes()
        (tmp_path / "cut.jsonl").write_bytes(whole[: len(whole) // 2])
        assert essence(mixer(model, tokenizer, tmp_path, journal="cut.jsonl", **options).run(FACTS[:5])) == wanted

    def test_it_keeps_the_beginning_of_the_attempt_before_and_counts_only_new_tokens(self, model, tokenizer, tmp_path):
        made = mixer(model, tokenizer, tmp_path, lam=0.5, retry="from-break", retries=6)
        targets = {t.id: t for t in made.run(FACTS)}
        rows = {}
        for _, row in made.journal.read():
            rows.setdefault(row["id"], []).append(row)
        kept = 0
        for fact, attempts in rows.items():
            assert attempts[0]["kept"] == 0
            for before, after in itertools.pairwise(attempts):
                n = after["kept"]
                assert n in (0, before["broke_at"])
                assert after["target_ids"][:n] == before["target_ids"][:n]
                assert after["sources"][:n] == before["sources"][:n]
                kept += n
            assert targets[fact].decoded_tokens == sum(len(row["target_ids"]) - row["kept"] for row in attempts)
            assert targets[fact].kept == attempts[-1]["kept"]
            # Not more than two in a row lean on what came before.
            assert not any(all(row["kept"] for row in attempts[i : i + 3]) for i in range(len(attempts) - 2))
        assert kept > 0

    def test_the_papers_restart_records_nothing_of_it(self, model, tokenizer, tmp_path):
        made = mixer(model, tokenizer, tmp_path, lam=0.5)
        assert all(target.kept == 0 for target in made.run(FACTS))
        assert not any("broke_at" in row for _, row in made.journal.read())

    @pytest.mark.parametrize(
        ("sources", "support", "kept", "expected"),
        [
            ("eneene", {1: -5.0, 4: -4.0}, 0, 1),  # the first implausible one
            ("eneene", {1: -1.0, 4: -4.0}, 0, 4),
            ("eneene", {1: -1.0, 4: -0.5}, 0, 1),  # none is: the least plausible one
            ("eneene", {1: 0.0, 4: 0.0}, 0, None),  # each was the expert's own choice
            ("eneene", {1: -5.0, 4: -4.0}, 2, 4),  # what was kept is not to blame
            ("eneenn", {1: -1.0}, 0, 4),  # the end was not the expert's
            ("eegeee", {}, 0, None),
        ],
    )
    def test_where_an_attempt_broke(self, sources, support, kept, expected):
        decoding = Decoding("a", [7] * len(sources), sources, [], True, support)
        assert break_at(decoding, kept) == expected


class TestAttemptsAhead:
    """Later attempts are decoded where there is room to spare, and judged in their order: the result is the oracle's."""

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_they_change_nothing_but_the_passes(self, model, tokenizer, tmp_path, monkeypatch, temperature):
        options = {"temperature": temperature, "lam": 0.5, "retries": 8, "token_budget": 8192}

        def rare(reply, expected):
            return sum(map(ord, reply)) % 7 == 0

        def passes(made):
            counted, forward = [], continuous.forward
            with monkeypatch.context() as patch:
                patch.setattr(continuous, "forward", lambda *args: (counted.append(1), forward(*args))[1])
                return essence(made.run(FACTS[:3])), len(counted)

        ahead, few = passes(mixer(model, tokenizer, tmp_path, rare, **options))
        monkeypatch.setattr(targets_attempts, "_SPARE", 0)
        one_by_one, many = passes(mixer(model, tokenizer, tmp_path, rare, journal="one.jsonl", **options))
        assert ahead == one_by_one
        assert few < 0.6 * many
        # Also the journals say the same: nothing that was not an attempt's turn was kept.
        rows = [
            sorted((r["id"], r["attempt"]) for _, r in Journal(tmp_path / name).read())
            for name in ("attempts.jsonl", "one.jsonl")
        ]
        assert rows[0] == rows[1]

    def test_nothing_is_decoded_ahead_of_a_sure_thing(self):
        for settings in (Settings(lam=0.0), Settings(lam=1.0), Settings(lam=0.5, retry="from-break")):
            waiting = targets_attempts.Queue([Case(FACTS[0], 0, 30)], settings.resolved)
            assert waiting.take()
            assert waiting.take() is None

    def test_attempts_count_in_their_order_and_none_after_the_accepted_one(self):
        settings = Settings(lam=0.5, retries=9).resolved
        case = Case(FACTS[0], 0, 30)
        waiting = targets_attempts.Queue([case], settings)
        keys = [waiting.take()[0] for _ in range(5)]

        def end(number, *, accepted):
            row = {"accepted": accepted, "target_ids": [7] * 30, "sources": "n" * 30}
            numbers = []
            for found, attempt, _ in waiting.end(keys[number], row):
                record(found, attempt, row, 0)
                numbers.append(attempt.number)
                row = {**row, "accepted": False}
            return numbers

        assert end(2, accepted=False) == []
        assert end(1, accepted=False) == []
        assert end(0, accepted=False) == [0, 1, 2]
        assert end(3, accepted=True) == [3]
        assert waiting.dropped == {keys[4]}
        assert end(4, accepted=True) == []
        assert waiting.dropped == set()
        assert waiting.take() is None
