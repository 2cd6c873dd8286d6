"""The stage as a child process: its environment, start, signals, end, and what it leaves behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# What a stage may see of the environment that its meter was started in. Settings decide its result; what is here says where
# things are, what it may use, and whom it may ask. Ranks and addresses of several processes come from cluster.launch, below.
_MAY_PASS = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|HOSTNAME|PWD|OLDPWD|SHLVL|_|TERM|COLUMNS|LINES|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TEMP|TMP|TEMPDIR|XDG_\w+"
    r"|(?:LD_)?LIBRARY_PATH|LD_PRELOAD|CC|CXX|CPATH|C(?:PLUS)?_INCLUDE_PATH|PYTHON(?!HASHSEED$)\w+|VIRTUAL_ENV|CONDA_\w+|MAMBA_\w+|COVERAGE_\w+|COV_CORE_\w+|PIP_\w+"
    r"|MODULE\w*|LMOD_\w+|LOADEDMODULES|_LMFILES_|EB(?:ROOT|VERSION|DEVEL)\w+|APPTAINER_\w+|SINGULARITY_\w+"
    r"|SLURM_\w+|SRUN_\w+|SBATCH_\w+|MUNGE_\w+|KRB5\w+|SNAKEMAKE_\w+|DISTILL_\w+"
    r"|CUDA_(?:VISIBLE_DEVICES|HOME|PATH|ROOT|CACHE_\w+|MPS_\w+|MODULE_LOADING)|NVIDIA_(?:VISIBLE_DEVICES|DRIVER_CAPABILITIES)"
    r"|(?:NCCL|TORCH_NCCL|GLOO|UCX|FI)_\w+|PYTORCH_(?:CUDA_)?ALLOC_CONF|TORCH_HOME|TORCH_EXTENSIONS_DIR|TRITON_CACHE_DIR"
    r"|(?:OMP|MKL|OPENBLAS|GOTO|BLIS|VECLIB|NUMEXPR)_\w*THREADS|OMP_(?:PROC_BIND|PLACES)|GOMP_CPU_AFFINITY|KMP_AFFINITY"
    r"|HF_\w+|HUGGING_FACE_HUB_TOKEN|HUGGINGFACE_HUB_CACHE|TRANSFORMERS_(?:CACHE|OFFLINE|VERBOSITY)|NLTK_DATA"
    r"|TOKENIZERS_PARALLELISM|DATASETS_VERBOSITY|VLLM_(?:CACHE_ROOT|LOGGING_LEVEL|NO_USAGE_STATS)|WANDB_\w+|MPL\w+|TQDM_\w+"
    r"|(?:https?|ftp|all|no)_proxy|(?:HTTPS?|FTP|ALL|NO)_PROXY|SSL_CERT_\w+|\w+_CA_(?:BUNDLE|CERTS)|GIT_SSL_\w+|NETRC"
)
# Of what may not pass, what would have changed a result or its energy.
_DECIDES = re.compile(
    r"(?:ACCELERATE|PARALLELISM_CONFIG|SM|FLASH|FSDP|DEEPSPEED|MASTER|PET)_\w+|\w*RANK|\w*WORLD_SIZE"
    r"|(?:TORCHELASTIC|OMPI|PMIX?|MV2|MPI)_\w+|(?:TORCH|PYTORCH|TORCHINDUCTOR|TORCHDYNAMO|TRITON|ATEN)_?\w+"
    r"|CUDA_\w+|NVIDIA_\w+|CUBLAS\w+|CUDNN_\w+|MKL_\w+|DNNL_\w+|ONEDNN_\w+|KMP_\w+|OMP_\w+|OPENBLAS_\w+"
    r"|HF_\w+|TRANSFORMERS_\w+|TRL_\w+|BITSANDBYTES_\w+|BNB_\w+|VLLM_\w+|PYTHONHASHSEED|XLA_\w+|USE_\w+|GLIBC_TUNABLES|MALLOC_\w+",
    re.IGNORECASE,
)

# Where there is no GPU, tensors lie in glibc's heap: in huge pages, and kept for the next step. By default each large one is
# mapped, faulted in by pages of 4 kB, and given back, which takes a third of a training's CPU time.
HEAP = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"}
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


class Child:
    """A stage in a session of its own, so that signals reach it through the meter only, once, and as a whole group.

    The kernel sends it `orphaned` when the meter dies: SIGKILL, for what nobody measures must not go on, and the lock of a
    dead meter keeps nobody out. Processes that it leaves behind, detached ones too, come to the meter to be ended.
    """

    def __init__(
        self, command: Sequence[str], output: IO[bytes], environment: Mapping[str, str], orphaned: int = signal.SIGKILL
    ) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent(orphaned),
        )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self.received: int | None = None
        self.time_is_up = False

    def send(self, signum: int) -> None:
        """Pass a signal on to the stage's process group; a stopped one is woken for it, as Slurm does."""
        self.received = signum
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signum)
            os.killpg(self.pid, signal.SIGCONT)

    def wait(self, seconds: float) -> bool:
        """Whether the stage has ended, waiting up to `seconds` for it. It is not reaped: /proc still knows it."""
        ready, _, _ = select.select([self._pidfd], [], [], max(0.0, seconds))
        return bool(ready)

    def reap(self) -> dict[str, Any]:
        """Outcome, exit code and signal of the ended stage."""
        code = self._process.wait()
        os.close(self._pidfd)
        if code == 0:
            return {"outcome": "completed", "exit_code": 0, "signal": None}
        if code < 0 or self.received is not None:
            number = -code if code < 0 else self.received
            outcome = "timeout" if self.time_is_up and number == signal.SIGTERM else "signal"
            return {"outcome": outcome, "exit_code": None if code < 0 else code, "signal": number}
        return {"outcome": "failed", "exit_code": code, "signal": None}

    def finish(self) -> dict[str, Any]:
        """Wait for the end, however long, and clean up; the outcome."""
        while not self.wait(60.0):
            pass
        outcome = self.reap()
        self.sweep()
        return outcome

    def warn(self) -> None:
        """The time that the stage has is nearly over."""
        self.time_is_up = True
        self.send(signal.SIGTERM)

    def stop(self, grace_s: float = 90.0) -> None:
        """End a stage that cannot be watched any more: SIGTERM, time for a checkpoint, SIGKILL."""
        self.send(signal.SIGTERM)
        self.wait(grace_s)
        self.sweep()

    def sweep(self) -> int:
        """End what the stage left running, in its process group or detached from it; returns how many there were."""
        left = 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
            left += 1
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and (orphans := _children(os.getpid())):
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    left += 1
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
        return left


def stage_environment(inherited: Mapping[str, str], own: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The environment of a stage, and the names in `inherited` that may not pass: the settings decide, not a shell.

    `own` are the variables that the meter gives it. GPUs are numbered as NVML numbers them, by their place on the bus.
    """
    given = {**own, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", **({} if any(map(os.path.exists, GPU_DRIVERS)) else HEAP)}
    passed = {name: value for name, value in inherited.items() if _MAY_PASS.fullmatch(name)}
    dropped = [n for n, value in inherited.items() if n not in passed and n not in own and given.get(n) != value]
    return passed | given, sorted(dropped)


def ignored(environment: Mapping[str, str], dropped: Iterable[str]) -> list[str]:
    """Warnings: variables among those `dropped` that would have changed a result, and a configuration that CodeCarbon finds.

    CodeCarbon reads ~/.codecarbon.config, ./.codecarbon.config and CODECARBON_*: with them it would multiply the energy.
    """
    said = []
    if names := [name for name in dropped if _DECIDES.fullmatch(name)]:
        said.append(f"the stage was started without {', '.join(names)}: the settings decide, not the environment")
    files = [name for name in ("~/.codecarbon.config", "./.codecarbon.config") if Path(name).expanduser().exists()]
    names = sorted(name for name in environment if name.lower().startswith("codecarbon_"))
    if files or names:
        said.append(f"CodeCarbon's own configuration is ignored, the section `energy` decides: {', '.join([*files, *names])}")
    return said


def exit_code(outcome: Mapping[str, Any]) -> int:
    """The code that says an outcome: the stage's own, or 128 + n for signal n."""
    return int(128 + outcome["signal"] if outcome["signal"] is not None else outcome["exit_code"])


def why_killed(outcome: Mapping[str, Any], sent: int | None, before: int | None, now: int | None) -> str | None:
    """Which signal ended a stage that was `sent` none, and whether memory was the reason.

    `before` and `now` are the processes of the job that the kernel has killed for memory (energy.host); it may have killed a
    worker of the stage, which then ends with an exit code.
    """
    kills = now - before if now is not None and before is not None else 0
    if outcome["outcome"] == "completed" or not (kills or (outcome["signal"] and sent is None)):
        return None
    how = signal.Signals(outcome["signal"]).name if outcome["signal"] else f"exit code {outcome['exit_code']}"
    if not kills:
        return f"the stage ended with {how}"
    return (
        f"the stage ended with {how}: out of memory, the kernel killed {kills} process(es) of this job: on a cluster, raise "
        "mem_gb of its family in the profile's site block (without a profile: its resource mem_mb)"
    )


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _die_with_parent(signum: int) -> Callable[[], None]:
    """What the child runs first: it asks the kernel for the signal when its parent dies (Linux)."""
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signum)
