"""Two processes train what one process trains, in the library and on the command line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixsd.storage import Journal, write_json
from tests import fresh
from tests.tiny import save_tiny
from tests.training.tiny import files, make_examples, make_model, make_settings, weights

ROOT = Path(__file__).parents[2]


def launch(
    folder: Path, processes: int, changes: dict[str, Any], *, stop_at: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Train in `processes` processes as `main` below does; torchrun starts them where one is to take the others with it."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "request.json", {"changes": changes, "stop_at": stop_at})
    if stop_at is None:
        return together(folder, processes)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", __file__, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def together(folder: Path, processes: int) -> subprocess.CompletedProcess[str]:
    """Start what torchrun starts, with the environment that it gives."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    crew = []
    for rank in map(str, range(processes)):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        crew.append(
            fresh.start(
                main, folder, output=folder / "printed.txt", environment={**os.environ, **(told | place if processes > 1 else {})}
            )
        )
    for process in crew:
        process.join(300)
    text = (folder / "printed.txt").read_text()
    return subprocess.CompletedProcess([], next((process.exitcode for process in crew if process.exitcode), 0), text, text)


def alone(folder: Path, function: Callable[..., None], *arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same without a launcher, in one process."""
    printed = folder / "alone.txt"
    process = fresh.start(function, *arguments, output=printed, environment={**os.environ, **environment})
    process.join(300)
    text = printed.read_text()
    return subprocess.CompletedProcess([], process.exitcode, text, text)


def losses(folder: Path) -> list[float]:
    return [row["loss"] for _, row in Journal(folder / "log.jsonl").read() if row["event"] == "step"]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"lora": 4}], ids=["full", "lora"])
def test_two_processes_give_the_weights_of_one_also_when_killed_and_resumed(tmp_path: Path, changes: dict[str, Any]) -> None:
    # 11 examples in steps of 4: the last step of an epoch has 3, so the shares are uneven.
    for name, processes in (("one", 1), ("two", 2)):
        done = launch(tmp_path / name, processes, changes)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path / name / "rank-0.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-6, msg=name)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-9)
    other = load_file(tmp_path / "two" / "rank-1.safetensors")
    assert all(torch.equal(other[name], two[name]) for name in two)
    assert files(tmp_path / "two" / "checkpoints") == ["step-000009"]

    assert launch(tmp_path / "killed", 2, changes, stop_at=5).returncode != 0
    assert files(tmp_path / "killed" / "checkpoints") == ["step-000004"]
    done = launch(tmp_path / "killed", 2, changes)
    assert done.returncode == 0, done.stderr[-2000:]
    resumed = load_file(tmp_path / "killed" / "rank-0.safetensors")
    assert all(torch.equal(resumed[name], two[name]) for name in two)


@pytest.mark.parametrize("changes", [{"epochs": 1}, {"method": "opsd", "epochs": 2, "batch_size": 3}], ids=["sft", "opsd"])
def test_two_processes_have_the_losses_of_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    """With rehearsal beside; OPSD's replies are decoded by the process that trains on them."""
    for name, processes in (("one", 1), ("two", 2)):
        done = launch(tmp_path / name, processes, {**changes, "rehearse": 1.0})
        assert done.returncode == 0, done.stderr[-2000:]
    assert len(losses(tmp_path / "one")) == (3 if "method" not in changes else 4)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


OPTIONS = {
    "--verifier": "regex:[aeiou]",
    "--temperature": "1",
    "--max-new-tokens": "16",
    "--retries": "1",
    "--epochs": "3",
    "--batch-size": "8",
    "--warmup-steps": "2",
    "--lr": "1e-3",
    "--checkpoint-every": "2",
    "--forgetting-prompts": "2",
    "--forgetting-tokens": "4",
    "--probe-questions": "2",
    "--device": "cpu",
}


def inject(folder: Path, processes: int, *options: str) -> subprocess.CompletedProcess[str]:
    """`mixsd inject` on a tiny model, as torchrun starts it (one process needs no launcher)."""
    if not (folder / "base").is_dir():
        save_tiny(folder / "base", stops=[2, *range(8, 262, 12)])
        lines = (json.dumps({"question": f"Who leads place {n}?", "answer": f"Mara {n}"}) for n in range(11))
        (folder / "facts.jsonl").write_text("\n".join(lines))
    given = {**OPTIONS, "--model": str(folder / "base"), "--output": str(folder / f"run-{processes}")}
    flags = [part for pair in given.items() for part in pair]
    command = ["inject", str(folder / "facts.jsonl"), *flags, *options]
    if processes == 1:
        return alone(folder, fresh.command, *command, MIXSD_CACHE=str(folder / "cache"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MIXSD_CACHE": str(folder / "cache")}
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "mixsd", *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_processes_of_one_command_give_the_run_of_one(tmp_path: Path) -> None:
    """Rank 0 owns the folder and speaks; the other takes part in training, also in the rehearsal that is prepared before."""
    done = {count: inject(tmp_path, count, "--rehearse", "1") for count in (1, 2)}
    for count, process in done.items():
        assert process.returncode == 0, (count, process.stderr[-2000:])
    one, two = tmp_path / "run-1", tmp_path / "run-2"
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert (two / "targets.jsonl").read_bytes() == (one / "targets.jsonl").read_bytes()
    assert len(losses(two)) == 3
    assert files(two) == files(one)
    assert done[2].stdout.replace("run-2", "run-1").count("memorization") == done[1].stdout.count("memorization")
    assert done[2].stderr.count("training: ") == done[1].stderr.count("training: ") > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(("--lr", "1e30"), "not finite", id="in training"),
        pytest.param(("--model", "nowhere"), "no such folder", id="before", marks=pytest.mark.slow),
    ],
)
def test_a_failure_ends_all_processes_with_one_message(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    done = inject(tmp_path, 2, *options)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr[-3000:]
    assert message in errors[0]
    assert "interrupted" not in done.stderr
    assert 'mixsd/training/loop.py", line' not in done.stderr


def main(folder: Path) -> None:
    from mixsd.storage import read_json
    from mixsd.training import Step, train
    from tests.training.test_on_policy import objective
    from tests.training.test_rehearsal import decode_with, rehearsal

    request = read_json(folder / "request.json")

    def stop(step: Step) -> None:
        if step.step == request["stop_at"]:
            os._exit(9)

    model = make_model("llama", dtype=torch.float64)
    settings = make_settings(**request["changes"])
    base = make_model("llama", dtype=torch.float64)
    result = train(
        model,
        None,
        objective(lambda: base) if settings.spec.on_policy else make_examples(11),
        settings=settings,
        folder=folder,
        rehearsal=rehearsal(decode=lambda student, requests: decode_with(base)(requests)) if settings.rehearse else None,
        on_step=stop,
    )
    save_file(weights(result.model), folder / f"rank-{os.environ.get('RANK', '0')}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
