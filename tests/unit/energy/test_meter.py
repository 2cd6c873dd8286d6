"""The meter as users run it: a separate process around real child processes."""

from __future__ import annotations

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from tests.helpers.meter_bench import REPOSITORY, SCHEMA, WORKER, Bench, alive, python, rapl_tree, wait_for
from workflow_scripts.energy.ledger import LedgerError, read_attempts
from workflow_scripts.energy.meter import check_prerun, main
from workflow_scripts.plan.slices import canonical
from workflow_scripts.settings.schema import Hardware, Prerun


def test_counter_steps_are_the_joules_of_the_record(tmp_path) -> None:
    bench = Bench(tmp_path)
    add = f"""
import time
for joules in (20, 5, 17):
    for zone in ("intel-rapl:0", "intel-rapl:2"):
        path = f"{bench.rapl}/{{zone}}/energy_uj"
        value = int(open(path).read()) + joules * 1000000
        import os
        open(path + "x", "w").write(str(value)); os.replace(path + "x", path)
    time.sleep(0.2)
"""
    assert bench.run(*python(add)).returncode == 0
    record = bench.record()
    assert record["energy"]["cpu"]["joules"] == pytest.approx(42.0), "psys is never added to packages"
    assert record["energy"]["cpu"]["class"] == "measured"
    assert record["energy"]["dram"]["joules"] == 0.0
    assert record["energy"]["gpu"]["joules"] is None and record["energy"]["gpu"]["reason"].startswith("no GPU")
    assert record["total_energy_joules"] == pytest.approx(42.0)
    assert record["energy"]["total"]["boundary"] == ["cpu", "dram"]
    assert record["joules_per_token"] is None and record["tokens_processed"] is None, "not counted is null, not 0"


WAIT_FOR_FLUSHES = """
import json, os, time
def told(): return json.load(open(os.environ["STAGE_ENERGY"]))
def flushed(wanted=lambda told: True):
    begun = time.time()
    while time.time() < begun + 60 and not (told()["time"] > begun + 0.2 and wanted(told())):
        time.sleep(0.02)
"""


def test_a_counter_that_fails_midway_makes_its_component_null_and_no_model(tmp_path) -> None:
    bench = Bench(tmp_path)
    counter = bench.rapl / "intel-rapl:0" / "energy_uj"
    fail = f"flushed(); open({str(counter)!r}, 'w').close(); flushed(lambda told: 'cpu' not in told['joules_by_component'])"
    result = bench.run(*python(f"{WAIT_FOR_FLUSHES}{fail}"))
    assert result.returncode == 0, result.stderr
    energy = bench.record()["energy"]
    assert (energy["cpu"]["joules"], energy["cpu"]["class"]) == (None, "unavailable")
    assert energy["cpu"]["reason"] == "RAPL zone intel-rapl:0 package-0: energy_uj is empty"
    assert energy["total"]["joules"] is None and "energy_uj is empty" in energy["total"]["reason"], "memory alone is no total"
    assert (energy["dram"]["joules"], energy["dram"]["class"]) == (0.0, "measured")


def test_a_counter_that_cannot_be_read_at_the_start_is_said(tmp_path) -> None:
    bench = Bench(tmp_path)
    (bench.rapl / "intel-rapl:0" / "energy_uj").write_text("")
    result = bench.run(*python("pass"))
    assert result.returncode == 0, result.stderr
    record = bench.record()
    assert record["energy"]["cpu"]["class"] != "measured" and record["energy"]["dram"]["class"] == "measured"
    assert "RAPL zone intel-rapl:0 package-0 cannot be read: energy_uj is empty: cpu is not counted" in record["warnings"]


@pytest.mark.parametrize(("code", "expected"), [("import sys; sys.exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_exit_codes_are_passed_on_and_the_log_is_shown(tmp_path, code, expected) -> None:
    bench = Bench(tmp_path)
    result = bench.run(*python(f"print('the reason', flush=True); {code}"))
    assert result.returncode == expected
    assert "the reason" in result.stderr and "the reason" in (tmp_path / "log").read_text()
    assert result.stderr.splitlines()[-1].startswith("for a bug report: distillation-energy-benchmark 0.2.0 (commit ")
    assert f", stage work, fingerprint {bench.ledgers()[0].start['provenance']['fingerprint'][:12]}, Python 3." in result.stderr
    assert not (tmp_path / "record.json").exists(), "a failed stage has no record at the output"
    (attempt,) = bench.ledgers()
    assert attempt.end["outcome"] == ("failed" if expected == 7 else "signal")


def test_sigterm_reaches_the_stage_which_ends_by_itself(tmp_path) -> None:
    bench = Bench(tmp_path)
    code = "import signal, sys, time; signal.signal(15, lambda *a: (print('saved', flush=True), sys.exit(143)));"
    process = bench.start(*python(code + WORKER.format(steps=1000, sleep=0.05)))
    bench.wait_for_tick(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert "saved" in (tmp_path / "log").read_text()
    (attempt,) = bench.ledgers()
    assert (attempt.end["outcome"], attempt.end["signal"]) == ("signal", 15)


def test_work_saved_on_sigterm_is_useful_when_the_next_attempt_resumes(tmp_path) -> None:
    bench = Bench(tmp_path)
    code = """
import signal, sys, time
from workflow_scripts.progress import Progress
progress = Progress("loss", total=100)
def stop(*_):
    progress.saved()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
while True:
    progress.add(loss=1)
    time.sleep(0.02)
"""
    process = bench.start(*python(code))
    bench.wait_for_tick(process)
    rapl_tree(bench.rapl, package_0=60.0)
    time.sleep(0.3)
    process.terminate()
    assert process.wait(20) == 143
    resumed = "from workflow_scripts.progress import Progress\nwith Progress('loss') as p: p.resume(loss=9); p.add(loss=1)"
    assert bench.run(*python(resumed)).returncode == 0
    record = bench.record()
    assert record["attempts"][0]["useful_j"] == pytest.approx(50.0)
    assert record["wasted_j"] == pytest.approx(0.0)


def test_killed_attempts_stay_on_the_bill_and_the_stage_dies_with_its_meter(tmp_path) -> None:
    bench = Bench(tmp_path)
    deaf = "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True);"
    code = deaf + WORKER.format(steps=1000, sleep=0.05)
    pids = []
    for _ in range(2):
        process = bench.start(*python(code))
        bench.wait_for_tick(process)
        rapl_tree(bench.rapl, package_0=int((bench.rapl / "intel-rapl:0" / "energy_uj").read_text()) / 1e6 + 30)
        time.sleep(0.4)
        pids.append(int((tmp_path / "log").read_text().split()[0]))
        process.kill()
        process.wait()
    wait_for(lambda: not any(alive(pid) for pid in pids), 5)
    killed = bench.ledgers()
    assert [a.end for a in killed] == [None, None]
    assert [a.last["joules"]["cpu"]["joules"] for a in killed] == pytest.approx([30.0, 30.0])
    # the command is part of the fingerprint by module and settings only, so this attempt joins the two before
    resumed = """
from workflow_scripts.progress import Progress
with Progress("loss") as progress:
    progress.resume(loss=10, steps=1)
    progress.add(loss=90)
"""
    assert bench.run(*python(resumed)).returncode == 0
    record = bench.record()
    assert [a["outcome"] for a in record["attempts"]] == ["lost", "lost", "completed"]
    assert [a["end_source"] for a in record["attempts"]] == ["ledger", "ledger", "meter"]
    assert record["total_energy_joules"] == pytest.approx(60.0)
    assert record["useful_j"] + record["wasted_j"] == pytest.approx(60.0)
    assert record["tokens_processed"] == 100
    assert record["joules_per_token"] == pytest.approx(0.6)


def test_work_that_was_not_resumed_is_waste(tmp_path) -> None:
    bench = Bench(tmp_path)
    grow = f"p='{bench.rapl}/intel-rapl:0/energy_uj'; import os\nopen(p+'x','w').write('50000000'); os.replace(p+'x', p)\n"
    assert bench.run(*python(grow + WORKER.format(steps=3, sleep=0.1) + "raise SystemExit(1)")).returncode == 1
    assert bench.run(*python(WORKER.format(steps=3, sleep=0.1))).returncode == 0
    record = bench.record()
    assert record["total_energy_joules"] == pytest.approx(40.0)
    assert record["wasted_j"] == pytest.approx(40.0) and record["useful_j"] == pytest.approx(0.0)


def test_a_stage_that_holds_the_interpreter_is_sampled_all_the_same(tmp_path) -> None:
    bench = Bench(tmp_path)
    assert bench.run(*python("import ctypes; ctypes.PyDLL(None).sleep(2)")).returncode == 0
    sampling = bench.record()["attempts"][0]["sampling"]
    assert sampling["max_gap_s"] < 2 * 0.05 + 0.2, "no gap of the order of the stall (2 s)"
    assert sampling["n"] >= 20


def test_processes_left_behind_are_ended_and_named(tmp_path) -> None:
    bench = Bench(tmp_path)
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    assert bench.run(*python(code)).returncode == 0
    pid = int((tmp_path / "log").read_text())
    assert not alive(pid)
    assert "the stage left processes behind; they were ended" in bench.record()["warnings"]


def test_a_foreign_or_newer_ledger_stops_the_meter_and_stays(tmp_path) -> None:
    folder = tmp_path / "attempts"
    folder.mkdir()
    line = {"event": "start", "schema": "energy-ledger/1", "stage": "other", "time": 0, "attempt": "a"}
    (folder / "x.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(LedgerError, match="a ledger of stage 'other' in the folder of 'work'"):
        read_attempts(folder, "work")
    (folder / "x.jsonl").write_text(json.dumps(line | {"schema": "energy-ledger/9"}) + "\n")
    with pytest.raises(LedgerError, match="schema 'energy-ledger/9', this program reads energy-ledger/1"):
        read_attempts(folder, "other")
    (folder / "x.jsonl").write_text(json.dumps(line) + '\n{"event": "tick", "elap')
    (attempt,) = read_attempts(folder, "other")
    assert attempt.cut_lines == 1 and attempt.end is None


def test_recover_makes_a_record_of_a_killed_stage(tmp_path) -> None:
    bench = Bench(tmp_path)
    process = bench.start(*python(WORKER.format(steps=1000, sleep=0.05)))
    bench.wait_for_tick(process)
    state = tmp_path / "state"
    command = [sys.executable, "-m", "workflow_scripts.energy.recover", str(state)]
    busy = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert f"is being worked on by process {process.pid}" in busy.stdout
    process.kill()
    process.wait()
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "partial, 0 J, attempts: lost" in result.stdout
    record = json.loads(next(state.glob("work/*/record.json")).read_text())
    jsonschema.validate(record, SCHEMA)
    assert record["tokens_processed"] > 0 and record["attempts"][0]["end_source"] == "ledger"


@pytest.mark.parametrize(
    ("answers", "warned"),
    [((3600, 1), True), ((3600,), False), ((3600, None), False), ((), False)],
    ids=["the end comes near", "far away", "squeue does not know the job", "no squeue"],
)
def test_a_stage_is_told_of_the_end_of_its_slurm_job(
    tmp_path, monkeypatch, answers: tuple[int | None, ...], warned: bool
) -> None:
    """The second answer is another end than the first: an operator's change, or the grace time of a preemption."""
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    for number, left in enumerate(answers):
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + left)) if left else "slurm_load_jobs error"
        (tmp_path / f"answer{number}").write_text(end + "\n")
    scontrol = squeue.with_name("scontrol")
    scontrol.write_text('#!/bin/sh\ndate "+Configuration data as of %Y-%m-%dT%H:%M:%S"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "64")
    if answers:
        squeue.write_text(
            f'#!/bin/bash\necho "$@ $SLURM_TIME_FORMAT" >> {tmp_path}/asked\nn=$(( $(wc -l < {tmp_path}/asked) - 1 ))\n'
            f"cat {tmp_path}/answer$(( n < {len(answers)} ? n : {len(answers)} - 1 ))\n"
        )
        squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    bench = Bench(tmp_path, seconds_before_limit=2.0)
    process = bench.start(*python(WORKER.format(steps=40, sleep=0.1)))
    _, said = process.communicate(timeout=60)
    end = bench.ledgers()[0].end
    assert end is not None
    assert (process.returncode, end["outcome"]) == ((143, "timeout") if warned else (0, "completed")), said
    assert ("Slurm ends this job in" in said) == warned
    if answers:
        assert set((tmp_path / "asked").read_text().splitlines()) == {"--noheader --jobs 7 --format=%e standard"}


def test_a_meter_that_cannot_go_on_takes_its_stage_with_it(tmp_path, monkeypatch, capsys) -> None:
    bench = Bench(tmp_path)
    ready, told = tmp_path / "ready", tmp_path / "told"

    def row(*values: object) -> None:
        if ready.exists():
            raise OSError(errno.EIO, "Input/output error", "trace")

    monkeypatch.setattr("workflow_scripts.energy.meter.Trace.row", row)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    code = f"""
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *a: (pathlib.Path({str(told)!r}).touch(), sys.exit(1)))
pathlib.Path({str(ready)!r}).touch()
time.sleep(60)
"""
    assert main(bench.command(*python(code))[3:]) == 1
    assert told.exists(), "it got SIGTERM, and time for a checkpoint"
    assert "work: meter: [Errno 5] Input/output error: 'trace'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("energy", "joules", "reason"),
    [({"track_cpu": False}, None, "energy.track_cpu = false"), ({"total_energy_policy": "gpu_only"}, 0.0, None)],
)
def test_energy_options_set_the_boundary(tmp_path, energy, joules, reason) -> None:
    bench = Bench(tmp_path, **energy)
    assert bench.run(*python("pass")).returncode == 0
    record = bench.record()
    assert record["energy"]["cpu"]["joules"] == joules and record["energy"]["cpu"]["reason"] == reason
    assert record["total_energy_joules"] is None and record["energy"]["total"]["boundary"] == []


def test_codecarbon_policy_leaves_measured_counters_out(tmp_path) -> None:
    bench = Bench(tmp_path, total_energy_policy="codecarbon")
    assert bench.run(*python("import time; time.sleep(0.2)")).returncode == 0
    record = bench.record()
    assert record["energy"]["cpu"]["method"].startswith("CodeCarbon")
    assert record["energy"]["total"]["class"] == "modelled"
    assert record["total_energy_joules"] > 0
    assert next((tmp_path / "state").glob("work/*/codecarbon/work.csv")).read_text().count("\n") == 2
    first = record["codecarbon_energy_kwh"]
    assert bench.run(*python("import time; time.sleep(0.2)")).returncode == 0
    files = sorted(p.name for p in (tmp_path / "state").glob("work/*/codecarbon/*.csv"))
    assert files == ["work.attempt2.csv", "work.csv"], "one file per attempt, none overwritten"
    assert bench.record()["codecarbon_energy_kwh"] > first, "attempts add up"


def test_samples_are_a_compact_trace_beside_the_record(tmp_path) -> None:
    bench = Bench(tmp_path, nvml_poll_interval_ms=10)
    assert bench.run(*python("import time; time.sleep(2)")).returncode == 0
    record = bench.record()
    assert record["attempts"][0]["sampling"]["n"] > 50
    assert (tmp_path / "record.json").stat().st_size < 10_000
    with gzip.open(record["attempts"][0]["trace"], "rt") as trace:
        lines = trace.read().splitlines()
    assert lines[0] == "elapsed_s,gpu_w,gpu_j,cpu_j,dram_j,tokens,work_j,module_j" and len(lines) > 50


@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        ({"assert_gpu_count": 4}, "hardware.assert_gpu_count = 4, but the job sees 0 GPU"),
        ({"assert_gpu_name": "L40S"}, "hardware.assert_gpu_name = 'L40S', but the job sees no GPU"),
        ({"assert_cpu_brand": "Abacus"}, "hardware.assert_cpu_brand = 'Abacus', but the CPU is"),
        ({"min_free_memory_gb": 1e6}, "hardware.min_free_memory_gb = 1000000.0, but"),
    ],
)
def test_a_failed_hardware_check_names_number_and_bound_and_writes_nothing(tmp_path, hardware, message) -> None:
    sections = {"hardware": Hardware(**hardware), "prerun": Prerun()}
    settings = canonical({name: section.model_dump(mode="json") for name, section in sections.items()})
    out = tmp_path / "validation.json"
    command = [
        sys.executable,
        "-m",
        "workflow_scripts.stages.prerun",
        "--settings",
        settings,
        "--options",
        "{}",
        "--out",
        str(out),
    ]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 1 and f"error: prerun: {message}" in result.stderr
    assert not out.exists()


def test_command_line_faults() -> None:
    with pytest.raises(SystemExit):
        main(["--stage", "x"])


def test_an_input_manifest_that_is_cut_is_named(tmp_path, capsys) -> None:
    cut = tmp_path / "manifest.json"
    cut.write_text('{"warnings": [')
    bench = Bench(tmp_path)
    options = bench.command(*python("pass"))[3:]
    options[options.index("--") : options.index("--")] = ["--file", str(cut)]
    assert main(options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"work: meter: {cut} is not whole JSON") and line.endswith("delete it and run again")
    assert not list((tmp_path / "state").rglob("lock.json"))


def test_a_prerun_of_other_settings_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "validation.json"
    made.write_text(json.dumps({"settings": {"hardware": {"min_free_memory_gb": 1.0}}}))
    check_prerun(str(made), json.dumps({"hardware": {"min_free_memory_gb": 1.0}}))
    with pytest.raises(OSError, match="settings have changed since .*validation.json was made: delete it and run again"):
        check_prerun(str(made), json.dumps({"hardware": {"min_free_memory_gb": 2.0}}))
