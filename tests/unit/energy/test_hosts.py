"""A stage on several hosts: each host is counted once, and the hosts add up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.meter_bench import REPOSITORY, Bench, alive, python, wait_for
from workflow_scripts.cluster.launch import on_every_node
from workflow_scripts.energy.state import host_identity

STAGE = """
import os, subprocess, sys, time
from pathlib import Path
hosts = {hosts!r}
until = "while [ ! -e " + {counter!r} + ".counted ]; do sleep 0.05; done"
def ledgers(): return list(Path(os.environ["METER_LEDGERS"]).glob("*.jsonl"))
follower = [sys.executable, "-m", "workflow_scripts.energy.follower", "--", "sh", "-c", until]
far = os.environ | {{"METER_HOST": "another-host"}}
running = [subprocess.Popen(follower, env=far if host == "far" else os.environ) for host in hosts]
while not all(p.read_bytes().endswith(b"\\n") for p in ledgers()) or len(ledgers()) < ("far" in hosts):
    time.sleep(0.02)  # until the other host is measured
open({counter!r} + ".new", "w").write("30000000")
os.replace({counter!r} + ".new", {counter!r})  # as the kernel's file, it is never seen empty
Path({counter!r} + ".counted").touch()
sys.exit(max(process.wait() for process in running))
"""


@pytest.mark.parametrize(
    ("hosts", "joules", "counted"),
    [(["near"], 20, 1), (["near", "far"], 40, 2), (["far", "far"], 40, 2)],
    ids=["the meter's own host", "a second host", "two tasks on the second host"],
)
def test_each_host_is_counted_once(tmp_path, hosts: list[str], joules: float, counted: int) -> None:
    bench = Bench(tmp_path)
    counter = str(bench.rapl / "intel-rapl:0" / "energy_uj")
    assert bench.run(*python(STAGE.format(hosts=hosts, counter=counter))).returncode == 0
    record = bench.record()
    (attempt,) = record["attempts"]
    assert record["energy"]["cpu"]["joules"] == pytest.approx(joules)
    assert record["total_energy_joules"] == pytest.approx(joules), "DRAM's counter stood still"
    assert len(attempt["hosts"]) == counted and attempt["joules"]["cpu"] == pytest.approx(joules)


def test_a_suspension_is_taken_out_on_every_host(tmp_path) -> None:
    """The follower of the second host stands still while its counter goes on by 20 J; the first host's meter does not."""
    bench = Bench(tmp_path)
    counter = bench.rapl / "intel-rapl:0" / "energy_uj"
    code = f"""
import os, signal, subprocess, sys, time
from pathlib import Path
until = "while [ ! -e {counter}.ok ]; do sleep 0.1; done"
follower = [sys.executable, "-m", "workflow_scripts.energy.follower", "--", "sh", "-c", until]
process = subprocess.Popen(follower, env=os.environ | {{"METER_HOST": "another-host"}})
while not [p for p in Path(os.environ["METER_LEDGERS"]).glob("*.jsonl") if b"tick" in p.read_bytes()]:
    time.sleep(0.05)
process.send_signal(signal.SIGSTOP)
Path("{counter}.new").write_text("30000000")
os.replace("{counter}.new", "{counter}")
time.sleep(4)
process.send_signal(signal.SIGCONT)
time.sleep(1)
Path("{counter}.ok").touch()
sys.exit(process.wait())
"""
    assert bench.run(*python(code)).returncode == 0
    record = bench.record()
    assert record["energy"]["cpu"]["joules"] == pytest.approx(20) and "was suspended for" in " ".join(record["warnings"])


def test_a_host_whose_meter_was_killed_before_it_knew_anything_makes_the_sum_unknown(tmp_path) -> None:
    bench = Bench(tmp_path)
    code = """
import os, signal, subprocess, sys, time
from pathlib import Path
follower = [sys.executable, "-m", "workflow_scripts.energy.follower", "--", "sleep", "60"]
options = os.environ["METER_OPTIONS"].replace('"flush_seconds":0.1', '"flush_seconds":60.0')
process = subprocess.Popen(follower, env=os.environ | {"METER_HOST": "another-host", "METER_OPTIONS": options})
ledgers = Path(os.environ["METER_LEDGERS"])
while not [p for p in ledgers.glob("*.jsonl") if p.read_bytes().endswith(b"\\n")]:
    time.sleep(0.05)
process.kill()
"""
    assert bench.run(*python(code)).returncode == 0
    cpu = bench.record()["energy"]["cpu"]
    assert cpu["joules"] is None and cpu["class"] == "unavailable"
    assert cpu["reason"].endswith("it ended before it had a figure") and cpu["reason"].startswith("host ")


def test_several_nodes_need_a_slurm_job(monkeypatch, capsys) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(SystemExit, match="training.num_nodes = 2 needs a Slurm job of 2 nodes"):
        on_every_node(2, 1, ["-m", "stage"])


def test_the_launcher_passes_exit_codes_and_signals_on(tmp_path) -> None:
    (tmp_path / "stage.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *a: sys.exit(143))\n"
        "if sys.argv[1] == 'fail' and os.environ['RANK'] == '1': sys.exit(7)\n"
        "if os.environ['RANK'] == '0': os.write(1, b'ready\\n')\n"
        "time.sleep(0 if sys.argv[1] == 'end' else 60)\n"
    )
    command = [sys.executable, "-m", "workflow_scripts.cluster.launch", "--nodes=1", "--processes=2", "--", "-m", "stage"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    assert subprocess.run([*command, "end"], env=environment, check=False, capture_output=True).returncode == 0
    failed = subprocess.run([*command, "fail"], env=environment, check=False, capture_output=True, text=True)
    assert failed.returncode == 7 and "process 1 of the stage ended with code 7; the others were stopped" in failed.stderr
    process = subprocess.Popen([*command, "wait"], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.terminate()
    assert process.wait(30) == 143


WAIT = """
import signal, sys
number = signal.Signals[sys.argv[1]]
signal.signal(number, lambda *a: (print(number.name, flush=True), sys.exit(143)))
print("ready", flush=True)
while True:
    signal.pause()
"""


def told(program: list[str], signum: int, said: str, **environment: str) -> None:
    """Start a program that waits, signal it, and see what reached the one below it."""
    process = subprocess.Popen(program, env=os.environ | environment, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    assert process.stdout.readline() == f"{said}\n" and process.wait(10) == 143


def test_sigterm_goes_through_srun_as_sigusr1(tmp_path) -> None:
    """srun would kill its tasks on SIGTERM; the follower of each node makes it SIGTERM again."""
    launch = "import os, sys; from workflow_scripts.cluster.launch import step; sys.exit(step(sys.argv[1:], os.environ))"
    told([*python(launch), *python(WAIT), "SIGUSR1"], signal.SIGTERM, "SIGUSR1")
    follower = [sys.executable, "-m", "workflow_scripts.energy.follower", "--", *python(WAIT), "SIGTERM"]
    near = {"METER_HOST": host_identity(), "METER_OPTIONS": "{}", "METER_LEDGERS": str(tmp_path), "METER_ATTEMPT": "a1"}
    told(follower, signal.SIGUSR1, "SIGTERM", **near)
    told(follower, signal.SIGTERM, "SIGTERM", **near)


def test_a_killed_launcher_takes_its_processes_along(tmp_path) -> None:
    """Workers at once, even those that do not listen to SIGTERM; srun gets SIGTERM, on which it kills its tasks."""
    worker = """
import os, signal, sys, time
from pathlib import Path
from workflow_scripts.distill.parallel import die_with_launcher
die_with_launcher()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path(sys.argv[1], str(os.getpid())).touch()
time.sleep(60)
"""
    (tmp_path / "worker.py").write_text(worker)
    pids = tmp_path / "pids"
    pids.mkdir()
    command = ["workflow_scripts.cluster.launch", "--nodes", "1", "--processes", "2", "--", "-m", "worker", str(pids)]
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    launcher = subprocess.Popen([sys.executable, "-m", *command], env=os.environ | {"PYTHONPATH": path})
    wait_for(lambda: len(list(pids.iterdir())) == 2, 60)
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not any(alive(int(pid.name)) for pid in pids.iterdir()), 5)
    launch = "import os, sys; from workflow_scripts.cluster.launch import step; step(sys.argv[1:], os.environ)"
    process = subprocess.Popen([*python(launch), *python(WAIT), "SIGTERM"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.kill()
    assert process.stdout.readline() == "SIGTERM\n"
    process.wait()
