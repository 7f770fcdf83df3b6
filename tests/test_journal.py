"""A journal outlives a kill: a torn line is skipped, every whole one is read back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from mixsd.errors import UserError
from mixsd.storage import Journal
from tests.test_storage import ROWS, names


class TestJournal:
    def test_it_reads_what_was_appended_with_places(self, tmp_path: Path) -> None:
        rows = [{"n": 1}, {"text": "Zürich\n東京"}, {}]
        with Journal(tmp_path / "deep" / "j.jsonl") as journal:
            places = [journal.append(row) for row in rows]
            assert list(journal.read()) == list(zip(places, rows, strict=True))
            assert [journal.at(place) for place in reversed(places)] == rows[::-1]

    def test_no_file_is_an_empty_journal(self, tmp_path: Path) -> None:
        assert list(Journal(tmp_path / "none").read()) == []
        assert names(tmp_path) == []

    @pytest.mark.parametrize("torn", [b'{"n": 2, "te', b'{"n": 2}', b"\xff\xfe", '{"text": "Zü'.encode()[:-1], b"[2]", b"2"])
    def test_a_torn_line_is_skipped_and_the_next_is_intact(self, tmp_path: Path, torn: bytes) -> None:
        path = tmp_path / "j.jsonl"
        with Journal(path) as journal:
            journal.append({"n": 1})
        with path.open("ab") as file:
            file.write(torn)
        with Journal(path) as journal:
            place = journal.append({"n": 3})
            assert journal.at(place) == {"n": 3}
            journal.append({"n": 4})
        found = [row["n"] for _, row in Journal(path).read()]
        # A line that lacks nothing but its end was finished.
        assert found == ([1, 2, 3, 4] if torn == b'{"n": 2}' else [1, 3, 4])

    def test_every_cut_loses_the_last_item_at_most(self, tmp_path: Path) -> None:
        path = tmp_path / "j.jsonl"
        rows = [{"n": n, "text": "Zürich"} for n in range(3)]
        with Journal(path) as journal:
            places = [journal.append(row) for row in rows]
        whole = path.read_bytes()
        for cut in range(len(whole) + 1):
            path.write_bytes(whole[:cut])
            with Journal(path) as journal:
                finished = [row for _, row in journal.read()]
                assert finished == rows[: len(finished)]
                assert len(finished) >= sum(1 for start in [*places, len(whole)] if start <= cut) - 1
                place = journal.append({"n": 9})
                assert [row for _, row in journal.read()] == [*finished, {"n": 9}]
                assert journal.at(place) == {"n": 9}

    def test_an_append_survives_a_kill(self, tmp_path: Path) -> None:
        path = tmp_path / "j.jsonl"
        code = (
            "import os, signal; from pathlib import Path; from mixsd.storage import Journal\n"
            f"Journal(Path({str(path)!r})).append({{'n': 1}})\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
        assert [row for _, row in Journal(path).read()] == [{"n": 1}]

    def test_two_writers_share_one_journal(self, tmp_path: Path) -> None:
        """The replies of a base model are shared by all runs, also by two at work at once."""
        path = tmp_path / "j.jsonl"
        with Journal(path) as one, Journal(path) as two:
            written = {}
            for n in range(20):
                journal = (one, two)[n * 7 % 3 % 2]
                written[journal.append({"n": n, "text": "x" * n})] = n
            assert [one.at(place)["n"] for place in written] == list(range(20))
            assert {place: row["n"] for place, row in two.read()} == written

    def test_a_row_that_is_not_json_is_not_begun(self, tmp_path: Path) -> None:
        with Journal(tmp_path / "j") as journal:
            journal.append({"n": 1})
            for bad in ({"n": float("inf")}, {"n": object()}):
                with pytest.raises((TypeError, ValueError)):
                    journal.append(bad)
            journal.append({"n": 2})
        assert [row["n"] for _, row in Journal(tmp_path / "j").read()] == [1, 2]

    def test_a_disk_that_fills_up_tears_one_line_only(self, tmp_path: Path) -> None:
        path = tmp_path / "j.jsonl"

        class Full:
            """A file that takes only the first bytes of a line, as a disk does with its last block."""

            def __init__(self, file: Any) -> None:
                self.file = file

            def write(self, data: bytes) -> int:
                return int(self.file.write(data[:5]))

            def close(self) -> None:
                self.file.close()

        journal = Journal(path)
        journal.append({"n": 1})
        journal._file = Full(journal._file)  # type: ignore[assignment]
        with pytest.raises(UserError, match="no space left on the disk"):
            journal.append({"n": 2})
        place = journal.append({"n": 3})
        journal.close()
        assert [row["n"] for _, row in journal.read()] == [1, 3]
        assert journal.at(place) == {"n": 3}

    @settings(deadline=None)
    @given(rows=ROWS)
    def test_round_trip(self, tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
        path = tmp_path_factory.getbasetemp() / "round-trip.journal"
        path.unlink(missing_ok=True)
        with Journal(path) as journal:
            for row in rows:
                assert journal.at(journal.append(row)) == row
            assert [row for _, row in journal.read()] == rows
