"""W&B: a tiny training is read back from its offline run; attempts continue one run; nothing that W&B does ends a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import wandb

from tests.conftest import REPOSITORY
from tests.helpers.meter_bench import wait_for
from tests.helpers.summaries import read, served, stage
from tests.helpers.summaries import summary as summary_of
from tests.helpers.tiny_training import train
from tests.helpers.wandb_file import OfflineRun, offline_runs
from tests.helpers.wandb_server import Server
from workflow_scripts.progress import Progress
from workflow_scripts.settings.schema import Wandb
from workflow_scripts.stages.runtime.wandb_run import Run, WandbChoice, mode_of
from workflow_scripts.stages.wandb_summary import figures
from workflow_scripts.stages.wandb_summary import main as conclude

OPEN = """
import sys, time
from workflow_scripts.stages.runtime.wandb_run import WandbChoice
from workflow_scripts.stages.runtime.wandb_run import Run
run = Run(WandbChoice.model_validate_json(sys.argv[1]), "kd-abc", {})
"""
KEY = "5ec2e7c0ffee5ec2e7c0ffee5ec2e7c0ffee5ec2"


def choice(folder: Path, **wandb) -> WandbChoice:
    settings = Wandb(**{"enabled": True, "mode": "offline"} | wandb)
    return WandbChoice(wandb=settings, experiment="kd", pipeline="kd", folder=str(folder))


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("METER_STAGE", "student_train")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def spent(path: Path, monkeypatch, joules: float) -> None:
    """What the meter tells the stage."""
    content = {"joules": joules, "joules_by_component": {}, "reason": None, "time": time.time(), "every_seconds": 2.0}
    path.write_text(json.dumps(content))
    monkeypatch.setenv("STAGE_ENERGY", str(path))


def only_run(folder: Path) -> OfflineRun:
    (run,) = offline_runs(folder / "wandb")
    return run


def written(folder: Path) -> dict[int, float]:
    """Losses in the file of a run that goes on; W&B writes what it has every two seconds."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return only_run(folder).values("train/loss") if path.stat().st_size else {}


def test_a_tiny_training_is_read_back(tmp_path: Path, toy_model, monkeypatch) -> None:
    """Losses are those of the Trainer's own log, the energy is the meter's, tokens per second are tokens over seconds."""
    import copy

    from workflow_scripts.distill import training
    from workflow_scripts.distill.arguments import arguments
    from workflow_scripts.distill.work import ExampleWork, WorkCallback, work_per_step
    from workflow_scripts.settings.schema import Training

    rows = [{"example_id": i, "input_ids": [3 + i, 5, 7, 11, 13], "loss_mask": [0, 0, 1, 1, 1]} for i in range(8)]
    options = Training(token_budget=24, batch_size=2, learning_rate=1e-3, eval_steps=2, dtype="float32")
    progress = Progress("loss")
    spent(tmp_path / "energy.json", monkeypatch, 7200.0)
    run = Run(choice(tmp_path), "kd-abc", {"seed": 1})
    order = list(range(8))
    steps = work_per_step(order, [ExampleWork(3, (5,))] * 8, 2, 1)
    trainer = training.DistillationTrainer(
        model=copy.deepcopy(toy_model),
        args=arguments(options, 1, 4, tmp_path / "checkpoints", 1),
        train_dataset=training.row_numbers(range(8)),
        eval_dataset=training.row_numbers(range(8, 10)),
        processing_class=toy_tokenizer(),
        data_collator=training.Collator(rows, rows[:2], 0),
        order=order,
        kd=None,
    )
    training.run(trainer, WorkCallback(progress, steps, run.training), tmp_path / "checkpoints")
    run.finish()
    found = only_run(tmp_path)
    logged = trainer.state.log_history
    assert (found.id, found.name, found.project) == ("kd-abc", "kd", "distillation-energy-benchmark")
    assert found.config["seed"] == 1 and found.ended
    assert found.values("train/loss") == {e["step"]: e["loss"] for e in logged if "loss" in e}
    assert found.values("eval/loss") == {e["step"]: e["eval_loss"] for e in logged if "eval_loss" in e}
    assert set(found.values("train/loss")) == {1, 2, 3, 4} and set(found.values("eval/loss")) == {2, 4}
    assert found.values("train/learning_rate") == {e["step"]: e["learning_rate"] for e in logged if "learning_rate" in e}
    assert found.values("energy/student_train/joules") == dict.fromkeys((1, 2, 3, 4), 7200)
    assert found.values("energy/student_train/kwh")[4] == pytest.approx(0.002)
    assert set(found.values("throughput/loss_tokens_per_second")) == {2, 3, 4}, "the first line has the start-up in it"


def toy_tokenizer():
    """97 words, as many as the toy model knows."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w3"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2", unk_token="w3")


def test_throughput_is_tokens_over_the_seconds_between_lines(tmp_path: Path, monkeypatch) -> None:
    clock = iter([10.0, 14.0, 15.0])
    run = Run(choice(tmp_path), "kd-abc", {})
    monkeypatch.setattr("workflow_scripts.stages.runtime.wandb_run.monotonic", lambda: next(clock))
    progress = Progress("loss")
    for step, tokens in ((1, 100), (2, 300), (2, 0)):
        progress.steps = step
        progress.tokens = {"loss": progress.tokens.get("loss", 0) + tokens, "input": 2 * (100 if step == 1 else 400)}
        run.training(progress, {"loss": 1.0} if tokens else {"eval_loss": 2.0})
    monkeypatch.undo()
    run.finish()
    found = only_run(tmp_path)
    assert found.values("throughput/loss_tokens_per_second") == {2: 300 / 4}
    assert found.values("throughput/input_tokens_per_second") == {2: 600 / 4}
    assert found.values("eval/loss") == {2: 2}
    assert found.values("train/global_step") == {1: 1, 2: 2}


def test_attempts_and_final_figures_are_one_run(tmp_path: Path, monkeypatch) -> None:
    """The second attempt says step 2 again, then goes on; the summary adds the record's energy and the quality."""
    for attempt, steps in enumerate(((1, 2), (2, 3))):
        spent(tmp_path / "energy.json", monkeypatch, 100.0 * (attempt + 1))
        run = Run(choice(tmp_path), "kd-0123", {})
        for step in steps:
            run.log(step, {"train/loss": 1.0 / step})
        run.finish()
        time.sleep(1.1)  # folders are named by the second
    evaluation = {"step": 2, "eval_loss": 0.75, "start_time": 1.0, "end_time": 2.0, "joules": 100.0}
    metrics = {"loss": 0.5, "eval_loss": 0.75, "ended_by": "token_budget", "evaluations": [evaluation]}
    record = stage(360.0, "student", "0123", metrics=metrics)
    stages = {"old": record | {"lineage": "base"}, "logit_caching": stage(None, "teacher", "77"), "student_train": record}
    quality = {"cross_entropy": 2.5, "model": "kd", "tasks": {"metrics": {"t/acc": {"value": 0.75, "stderr": None}}}}
    summary = summary_of("kd", "kd", stages, deployment={"model": served(0.25)}, quality=quality)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    options = ["--summary", str(tmp_path / "summary.json"), "--wandb", choice(tmp_path).model_dump_json()]
    assert conclude([*options, "--config", '{"pipeline": "kd"}', "--out", str(tmp_path / "wandb.json")]) == 0
    first, second, last = offline_runs(tmp_path / "wandb")
    assert {first.id, second.id, last.id} == {"kd-0123"}
    assert (list(first.values("train/loss")), list(second.values("train/loss"))) == ([1, 2], [2, 3])
    assert last.config["pipeline"] == "kd"
    assert (last.summary["train/loss"], last.summary["eval/loss"]) == (0.5, 0.75)
    assert last.summary["energy/student_train/joules"] == 360
    assert last.summary["energy/student_train/kwh"] == pytest.approx(1e-4)
    assert last.summary["energy/generated_joules_per_token"] == 0.25
    assert last.summary["quality/cross_entropy"] == 2.5 and last.summary["quality/t/acc"] == 0.75
    assert not any("old" in key or "logit_caching/joules" in key for key in last.summary), "lineage and unknown are left out"
    note = json.loads((tmp_path / "wandb.json").read_text())
    assert note["error"] is None
    assert {key for key in note["figures"] if key.startswith(("train/", "eval/"))} == {"train/loss", "eval/loss"}


def test_of_a_real_training_only_numbers_are_said_again(tmp_path: Path) -> None:
    metrics = train(tmp_path / "run", held_out=3, eval_steps=2).metrics
    assert metrics["ended_by"] == "token_budget" and len(metrics["evaluations"]) == 3
    found = figures(read(summary_of("x", "kd", {"student_train": stage(None, "student", "x", metrics=metrics)}, quality=None)))
    assert set(found) == {"train/loss", "train/cross_entropy", "eval/loss"}
    assert found["eval/loss"] == metrics["evaluations"][-1]["eval_loss"]


def test_final_figures_that_were_not_logged_name_the_file_to_delete(tmp_path: Path, capsys) -> None:
    record = stage(None, "student", "0123", metrics={"done": True})
    summary = summary_of("x", "kd", {"student_train": record}, quality=None)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "file").write_text("")
    options = ["--summary", str(tmp_path / "summary.json"), "--wandb", choice(tmp_path / "file" / "below").model_dump_json()]
    assert conclude([*options, "--config", "{}", "--out", str(tmp_path / "wandb.json")]) == 0
    note = json.loads((tmp_path / "wandb.json").read_text())
    assert note["error"].startswith("not opened: NotADirectoryError") and note["figures"] == {}
    assert f"delete {tmp_path / 'wandb.json'} and run again" in capsys.readouterr().err


def test_a_service_that_cannot_be_ended_ends_no_training(tmp_path: Path, capsys, monkeypatch) -> None:
    def fail() -> None:
        raise RuntimeError("the service is stuck")

    run = Run(choice(tmp_path), "kd-abc", {})
    with monkeypatch.context() as patch:
        patch.setattr("wandb.teardown", fail)
        run.finish()
    assert run.error == "its service was not ended: RuntimeError: the service is stuck"
    assert "it is given up, the stage goes on" in capsys.readouterr().err
    wandb.teardown()
    assert only_run(tmp_path).ended


@pytest.mark.parametrize(
    ("wandb", "variables", "mode"),
    [
        ({"enabled": False}, {}, "disabled"),
        ({"mode": "disabled"}, {}, "disabled"),
        ({"mode": "online"}, {"WANDB_MODE": "offline"}, "online"),
        ({"mode": "auto"}, {}, "offline"),
        ({"mode": "auto"}, {"WANDB_API_KEY": KEY}, "online"),
        ({"mode": "auto"}, {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
    ],
)
def test_modes(tmp_path: Path, monkeypatch, wandb: dict, variables: dict, mode: str) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert mode_of(choice(tmp_path, **wandb)) == mode


def test_who_has_logged_in_is_online(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert mode_of(choice(tmp_path, mode="auto")) == "online"


def elsewhere(folder: Path, code: str, mode: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run lines on an open `run` in a process of their own."""
    return subprocess.run(
        [sys.executable, "-c", OPEN + code, choice(folder, mode=mode).model_dump_json()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=folder,
        env=os.environ | variables | {"PYTHONPATH": str(REPOSITORY)},
    )


def test_without_network_an_online_run_is_kept_offline(tmp_path: Path) -> None:
    code = "run.log(1, {'train/loss': 2.0})\nrun.finish()\nprint(run.mode, run.error)\n"
    begun = time.monotonic()
    done = elsewhere(tmp_path, code, "online", WANDB_BASE_URL="http://127.0.0.1:9", WANDB_INIT_TIMEOUT="2")
    assert done.stdout.split() == ["offline"]
    assert "warning: W&B cannot be reached, the run is kept offline in" in done.stderr and KEY not in done.stderr
    assert time.monotonic() - begun < 60
    assert only_run(tmp_path).values("train/loss") == {1: 2}


def test_a_server_that_goes_away_holds_the_training_up_for_the_finish_timeout_only(tmp_path: Path) -> None:
    server = Server()
    code = "run.log(1, {'train/loss': 2.0})\nprint('open', flush=True)\nsys.stdin.readline()\n"
    code += "run.log(2, {'train/loss': 1.0})\nbegun = time.monotonic()\nrun.finish()\n"
    code += "print(run.mode, time.monotonic() - begun)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN + code, choice(tmp_path, mode="online").model_dump_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "WANDB_BASE_URL": server.url, "WANDB_FINISH_TIMEOUT": "3"},
    )
    assert process.stdout is not None and process.stdout.readline().strip() == "open"
    wait_for(lambda: "kd-abc" in server.runs)
    server.stop()
    said, _ = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    mode, seconds = said.split()
    assert mode == "online" and float(seconds) < 10
    assert server.runs["kd-abc"]["name"] == "kd"


@pytest.mark.slow
def test_synced_pieces_are_one_run(tmp_path: Path) -> None:
    """Two attempts and the final figures: history appended, no line lost, the listed figures the last piece's."""
    for first, last in ((1, 3), (3, 4)):
        code = f"for step in range({first}, {last + 1}):\n    run.log(step, {{'train/loss': 1.0 / step}})\nrun.finish()\n"
        elsewhere(tmp_path, code, "offline")
    elsewhere(tmp_path, "run.conclude({'energy/total/kwh': 0.5}, {})\nrun.finish()\n", "offline")
    pieces = sorted(str(path) for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert len(pieces) == 3
    server = Server()
    wandb = [sys.executable, "-m", "wandb", "sync", "--yes", *pieces]
    subprocess.run(
        wandb, check=True, timeout=120, capture_output=True, cwd=tmp_path, env=os.environ | {"WANDB_BASE_URL": server.url}
    )
    server.stop()
    assert list(server.runs) == ["kd-abc"]
    history = server.runs["kd-abc"]["history"]
    assert [line["train/global_step"] for line in history] == [1, 2, 3, 3, 4]
    assert [line["train/loss"] for line in history] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 3, 1 / 4])
    assert server.runs["kd-abc"]["summary"]["energy/total/kwh"] == 0.5


def test_a_training_that_ends_early_or_is_killed_keeps_its_lines(tmp_path: Path) -> None:
    """Exit code 143 after SIGTERM closes the run; SIGKILL of the training and of W&B's process costs its last two seconds."""
    lines = "run.log(1, {'train/loss': 2.0})\nrun.log(2, {'train/loss': 1.0})\nprint('logged', flush=True)\ntime.sleep(SLEEP)\n"
    for name, sleep in (("ended", 0), ("killed", 600)):
        settings = choice(tmp_path / name, mode="offline").model_dump_json()
        process = subprocess.Popen(
            [sys.executable, "-c", f"{OPEN}{lines.replace('SLEEP', str(sleep))}sys.exit(143)\n", settings],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        assert process.stdout is not None and process.stdout.readline().strip() == "logged"
        if sleep:
            wait_for(lambda folder=tmp_path / name: written(folder))
            for each in (*psutil.Process(process.pid).children(recursive=True), process):
                each.kill()
        assert process.wait(timeout=60) == (-9 if sleep else 143)
        run = only_run(tmp_path / name)
        assert run.values("train/loss") == ({1: 2} if sleep else {1: 2, 2: 1}), "a line is written when the next one comes"
        assert run.ended == (not sleep)


def test_a_run_that_fails_is_given_up_and_the_training_goes_on(tmp_path: Path, capsys) -> None:
    run = Run(choice(tmp_path), "kd-abc", {})
    run.log(1, {"train/loss": 2.0})
    alive, broken = run._run, type("Broken", (), {"log": lambda *a, **k: (_ for _ in ()).throw(BrokenPipeError("gone"))})()
    run._run = broken
    run.log(2, {"train/loss": 1.0})
    run.log(3, {"train/loss": 1.0})
    assert capsys.readouterr().err.count("W&B run kd-abc: a line was lost: BrokenPipeError: gone: it is given up") == 1
    alive.finish()
    unwritable = Run(choice(tmp_path / "file" / "below"), "kd-abc", {}) if (tmp_path / "file").write_text("") == 0 else None
    assert unwritable is not None and "not opened: NotADirectoryError" in unwritable.error
    unwritable.log(1, {"train/loss": 2.0})
    unwritable.finish()
