"""Files are finished or absent, journals outlive a kill, and a disk that says no is reported by name."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixsd import storage
from mixsd.errors import UserError
from mixsd.storage import (
    Journal,
    atomic_folder,
    cache_folder,
    digest,
    disk_errors,
    file_digest,
    read_json,
    read_jsonl,
    sweep_leftovers,
    write_json,
    write_jsonl,
    write_text,
)

# Text as JSON may hold it, lone surrogates included; a high one before a low one would be read back as the pair they spell.
TEXT = st.text(st.characters(exclude_categories=("Cs",))) | st.just("\ud800 alone") | st.just("caf\udce9") | st.just("\\ud800")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(TEXT, VALUES, max_size=3), max_size=5)

# A process id that no system hands out.
NOBODY = 2**22 + 1


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


class TestFiles:
    @pytest.mark.parametrize("write", [write_text, write_json])
    def test_writes_make_their_folders_and_leave_nothing_beside(self, tmp_path: Path, write: Any) -> None:
        write(tmp_path / "a" / "b" / "file", "text")
        assert names(tmp_path / "a" / "b") == ["file"]

    def test_text_is_utf8_with_line_feeds_on_every_system(self, tmp_path: Path) -> None:
        write_text(tmp_path / "f", "Zürich\n東京\r\n")
        assert (tmp_path / "f").read_bytes() == "Zürich\n東京\r\n".encode()

    def test_a_row_that_cannot_be_written_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.jsonl"
        write_jsonl(path, [{"old": 1}])
        for bad in ({"new": object()}, {"new": float("nan")}):
            with pytest.raises((TypeError, ValueError)):
                write_jsonl(path, [{"new": 1}, bad])
            with pytest.raises((TypeError, ValueError)):
                write_json(path, bad)
        assert list(read_jsonl(path)) == [{"old": 1}]
        assert names(tmp_path) == ["rows.jsonl"]

    def test_a_generator_that_fails_leaves_nothing(self, tmp_path: Path) -> None:
        def rows() -> Any:
            yield {"n": 1}
            raise RuntimeError("in the middle")

        with pytest.raises(RuntimeError, match="in the middle"):
            write_jsonl(tmp_path / "rows.jsonl", rows())
        assert names(tmp_path) == []

    @pytest.mark.parametrize(
        "error", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.ENOSPC, "No space left on device")], ids=str
    )
    @pytest.mark.parametrize("file", [None, "/elsewhere/model.safetensors"])
    def test_what_fails_while_a_row_is_made_is_not_blamed_on_the_file(
        self, tmp_path: Path, error: OSError, file: str | None
    ) -> None:
        error = OSError(error.errno, error.strerror, file)

        def rows() -> Any:
            yield {"n": 1}
            raise error

        with pytest.raises(OSError, match=error.strerror) as caught:
            write_jsonl(tmp_path / "rows.jsonl", rows())
        assert caught.value is error
        assert names(tmp_path) == []

    def test_a_folder_is_not_blamed_for_a_file_elsewhere_that_cannot_be_read(self, tmp_path: Path) -> None:
        denied = OSError(errno.EACCES, "Permission denied", str(tmp_path / "base" / "config.json"))
        with pytest.raises(PermissionError) as caught, atomic_folder(tmp_path / "run" / "model"):
            raise denied
        assert caught.value is denied
        for own in (tmp_path / "run" / ".model.1.tmp" / "weights", tmp_path / "run"):
            with pytest.raises(UserError, match="model: cannot be written"), atomic_folder(tmp_path / "run" / "model"):
                raise OSError(errno.EACCES, "Permission denied", str(own))

    def test_rows_stream(self, tmp_path: Path) -> None:
        """The generator is not collected first: the temporary file grows while it runs."""
        sizes = []

        def rows() -> Any:
            for number in range(2000):
                yield {"text": "x" * 100, "number": number}
                sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))

        write_jsonl(tmp_path / "rows.jsonl", rows())
        assert max(sizes[:1000]) > 10_000
        assert sum(1 for _ in read_jsonl(tmp_path / "rows.jsonl")) == 2000

    def test_the_rename_failing_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_text(tmp_path / "f", "old")
        monkeypatch.setattr(os, "replace", _raiser(errno.EACCES))
        with pytest.raises(UserError, match=r"f: cannot be written"):
            write_text(tmp_path / "f", "new")
        assert (tmp_path / "f").read_text() == "old"
        assert names(tmp_path) == ["f"]

    @settings(deadline=None)
    @given(VALUES)
    def test_json_round_trip(self, tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
        path = tmp_path_factory.getbasetemp() / "round-trip.json"
        write_json(path, value)
        assert read_json(path) == value
        path.read_bytes().decode()

    @settings(deadline=None)
    @given(ROWS)
    def test_jsonl_round_trip(self, tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
        path = tmp_path_factory.getbasetemp() / "round-trip.jsonl"
        write_jsonl(path, rows)
        assert list(read_jsonl(path)) == rows
        assert path.read_bytes().count(b"\n") == len(rows)

    def test_text_with_half_a_surrogate_pair_is_written_as_its_escape(self, tmp_path: Path) -> None:
        write_text(tmp_path / "f", "caf\udce9")
        assert (tmp_path / "f").read_bytes() == rb"caf\udce9"

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b'{"a": 1}\n{"a": \n', r"rows.jsonl: line 2: not valid JSON"),
            (b'{"a": 1}\n[1]\n', r"rows.jsonl: line 2: expected a JSON object"),
            (b'{"a": 1}\n{"a": "\xff"}\n', r"rows.jsonl: line 2: not valid JSON"),
        ],
    )
    def test_a_broken_line_is_named(self, tmp_path: Path, content: bytes, said: str) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(content)
        rows = read_jsonl(path)
        assert next(rows) == {"a": 1}
        with pytest.raises(UserError, match=said) as caught:
            next(rows)
        assert "\n" not in str(caught.value)

    def test_what_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"none\.json: no such file"):
            read_json(tmp_path / "none.json")
        with pytest.raises(UserError, match=r"cannot be read"):
            read_json(tmp_path)
        with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
            next(read_jsonl(tmp_path / "none.jsonl"))
        (tmp_path / "broken.json").write_bytes(b"\xff{")
        with pytest.raises(UserError, match=r"broken\.json: not valid JSON"):
            read_json(tmp_path / "broken.json")


def _raiser(number: int, message: str | None = None) -> Any:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, message or os.strerror(number))

    return fail


class TestDiskErrors:
    @pytest.mark.parametrize(
        ("number", "said"),
        [
            (errno.ENOSPC, "no space left on the disk; free some"),
            (errno.EDQUOT, "no space left on the disk; free some"),
            (errno.EACCES, "cannot be written .* choose another folder"),
            (errno.EROFS, "cannot be written .* choose another folder"),
            (errno.ENAMETOOLONG, "cannot be written .* choose another folder"),
            (errno.ENOTDIR, "cannot be written .* something else has that name"),
            (errno.ENOTEMPTY, "cannot be written .* something else has that name"),
        ],
    )
    def test_the_path_is_named_in_one_line(self, number: int, said: str) -> None:
        with pytest.raises(UserError, match=f"^some/file: {said}") as caught, disk_errors(Path("some/file")):
            _raiser(number)()
        assert "\n" not in str(caught.value)

    def test_other_errors_pass(self) -> None:
        for error in (OSError("the loader's own"), RuntimeError("no"), UserError("other: mend it")):
            with pytest.raises(type(error)) as caught, disk_errors(Path("f")):
                raise error
            assert caught.value is error

    def test_a_full_disk_met_by_safetensors(self) -> None:
        with pytest.raises(UserError, match="no space left"), disk_errors(Path("f")):
            raise Exception("I/O error: No space left on device (os error 28)")

    @pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), lambda path: Journal(path).append({})])
    def test_a_file_where_a_folder_should_be(self, tmp_path: Path, write: Any) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="something else has that name"):
            write(tmp_path / "file" / "inside")

    def test_a_folder_where_a_file_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "folder" / "full").mkdir(parents=True)
        with pytest.raises(UserError, match="something else has that name"):
            write_text(tmp_path / "folder", "x")
        assert names(tmp_path) == ["folder"]

    def test_a_full_disk_in_the_middle_of_a_file(self, tmp_path: Path) -> None:
        """/dev/full is the kernel's own full disk."""
        if not Path("/dev/full").exists():
            pytest.skip("needs /dev/full")
        write_text(tmp_path / "f", "old")
        storage._beside(tmp_path / "f", "tmp").symlink_to("/dev/full")
        with pytest.raises(UserError, match="f: no space left"):
            write_jsonl(tmp_path / "f", ({"n": n} for n in range(10**5)))
        assert (tmp_path / "f").read_text() == "old"
        assert names(tmp_path) == ["f"]


class TestAtomicFolder:
    def test_it_appears_whole_or_not_at_all(self, tmp_path: Path) -> None:
        target = tmp_path / "deep" / "model"
        with atomic_folder(target) as building:
            (building / "weights").write_text("w")
            assert not target.exists()
        assert names(target) == ["weights"]
        assert names(target.parent) == ["model"]

    def test_an_error_leaves_the_old_one(self, tmp_path: Path) -> None:
        target = tmp_path / "model"
        with atomic_folder(target) as building:
            (building / "old").write_text("")

        def stop(building: Path, failure: BaseException) -> None:
            (building / "new").write_text("")
            raise failure

        for failure in (RuntimeError("stop"), KeyboardInterrupt()):
            with pytest.raises(type(failure)), atomic_folder(target) as building:
                stop(building, failure)
        assert names(target) == ["old"]
        assert names(tmp_path) == ["model"]

    def test_a_new_one_replaces_all_of_the_old_one(self, tmp_path: Path) -> None:
        target = tmp_path / "model"
        for name in ("old", "new"):
            with atomic_folder(target) as building:
                (building / name).write_text("")
        assert names(target) == ["new"]
        assert names(tmp_path) == ["model"]

    def test_a_rename_that_fails_brings_the_old_one_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = tmp_path / "model"
        with atomic_folder(target) as building:
            (building / "old").write_text("")
        real, calls = os.replace, []

        def second_fails(source: Any, destination: Any) -> None:
            calls.append(destination)
            if len(calls) == 2:
                raise OSError(errno.EACCES, "no")
            real(source, destination)

        monkeypatch.setattr(os, "replace", second_fails)
        with pytest.raises(UserError, match="model: cannot be written"), atomic_folder(target) as building:
            (building / "new").write_text("")
        assert names(target) == ["old"]
        assert names(tmp_path) == ["model"]

    def test_a_kill_between_the_renames_is_undone_by_the_sweep(self, tmp_path: Path) -> None:
        target = tmp_path / "model"
        with atomic_folder(target) as building:
            (building / "old").write_text("")
        code = (
            "import os, signal; from pathlib import Path; from mixsd.storage import atomic_folder\n"
            "real, calls = os.replace, []\n"
            "def replace(a, b):\n"
            "    real(a, b)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "os.replace = replace\n"
            f"with atomic_folder(Path({str(target)!r})) as building: (building / 'new').write_text('')\n"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
        assert not target.exists()
        sweep_leftovers(tmp_path)
        assert names(target) == ["old"]
        assert names(tmp_path) == ["model"]


class TestSweep:
    def test_only_our_leftovers_go(self, tmp_path: Path) -> None:
        kept = ["model", ".hidden.tmp", ".notes.old", "report.tmp", ".lock", ".a.b.tmp"]
        for name in [*kept, f".rows.jsonl.{NOBODY}.tmp"]:
            (tmp_path / name).write_text("")
        for name in (f".model.{NOBODY}.tmp", f".model.{NOBODY}.old"):
            (tmp_path / name / "inside").mkdir(parents=True)
        sweep_leftovers(tmp_path)
        assert names(tmp_path) == sorted(kept)

    def test_what_a_running_process_writes_in_a_shared_folder_stays(self, tmp_path: Path) -> None:
        theirs, ours = tmp_path / f".f.{os.getppid()}.tmp", tmp_path / f".f.{os.getpid()}.tmp"
        for file in (theirs, ours):
            file.write_text("")
        sweep_leftovers(tmp_path, shared=True)
        assert names(tmp_path) == [theirs.name]
        sweep_leftovers(tmp_path)
        assert names(tmp_path) == [], "who holds the folder's lock knows that nobody is at work in it"

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        sweep_leftovers(tmp_path / "none")


class TestDigests:
    def test_pinned(self) -> None:
        """Run folders and caches are keyed by it: another value orphans them all."""
        assert digest({"b": [1, 2.5, None, True], "a": "Zürich"}) == "7c915a06836d5abc2c168829d2b83463"

    @settings(deadline=None)
    @given(st.dictionaries(TEXT, VALUES, max_size=5), st.randoms())
    def test_key_order_does_not_matter(self, value: dict[str, Any], random: Any) -> None:
        keys = list(value)
        random.shuffle(keys)
        assert digest({key: value[key] for key in keys}) == digest(value)

    def test_different_values_differ(self) -> None:
        values = [
            None,
            False,
            0,
            "",
            "0",
            [],
            {},
            [[]],
            [0],
            {"a": 0},
            {"a": [0]},
            "\ud800",
            "\\ud800",
            ["a", "b"],
            ["b", "a"],
            ["a,b"],
        ]
        assert len({digest(value) for value in values}) == len(values)

    def test_the_same_in_every_process(self) -> None:
        code = "from mixsd.storage import digest; print(digest({k: {k} == {k} for k in {'a', 'b', 'c', 'd'}}))"
        found = {
            subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2", "3")
        }
        assert found == {digest(dict.fromkeys("abcd", True)) + "\n"}

    def test_a_file_is_hashed_by_its_bytes_alone(self, tmp_path: Path) -> None:
        content = bytes(range(256)) * 200_000  # more than one block of 16 MiB
        for name in ("a", "b"):
            (tmp_path / name).write_bytes(content)
        assert file_digest(tmp_path / "a") == file_digest(tmp_path / "b")
        (tmp_path / "b").write_bytes(content[:-1] + b"\0")
        assert file_digest(tmp_path / "a") != file_digest(tmp_path / "b")


def test_the_cache_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("MIXSD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert cache_folder() == Path.home() / ".cache" / "mixsd"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/mixsd")
    monkeypatch.setenv("MIXSD_CACHE", "/own")
    assert cache_folder() == Path("/own")


def test_json_files_read_well(tmp_path: Path) -> None:
    write_json(tmp_path / "f.json", {"city": "Zürich"})
    assert (tmp_path / "f.json").read_text(encoding="utf-8") == '{\n  "city": "Zürich"\n}\n'
    assert json.loads((tmp_path / "f.json").read_text(encoding="utf-8")) == {"city": "Zürich"}
