"""The arithmetic of benchmarks/gpu: FLOPs against PyTorch's own counter, joules of a window from a trace made by hand."""

from __future__ import annotations

import gzip

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.run import table, with_energy, with_figures
from benchmarks.gpu.shapes import SCALES, Scale, build, chat_rows, forward_flops
from tests.helpers.summaries import stage
from workflow_scripts.energy.model import StageRecord
from workflow_scripts.settings.shapes import Shape


def test_flops_are_those_that_pytorch_counts() -> None:
    """Its counter takes attention whole, ours the causal half."""
    shape = Shape(32, 48, 2, 4, 4, vocab_size=50)
    model = build(shape, torch.float32)
    model.set_attn_implementation("eager")  # the counter knows no fused attention on a CPU
    assert sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2) == 2 * (4 * 32**2 + 3 * 32 * 48)
    length = 24
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(2, 2 + length)[None], use_cache=False)
    attention = 4 * 2 * 32 * length**2
    assert counter.get_total_flops() == forward_flops(shape, [length], length) + attention / 2
    halves = forward_flops(shape, [length // 2] * 2, length)
    assert halves == forward_flops(shape, [length], length) - attention / 4


def test_the_real_shapes_are_7b_and_1b() -> None:
    for shape, parameters in ((SCALES["real"].teacher, 7.3e9), (SCALES["real"].student, 1.48e9)):
        weights = shape.num_hidden_layers * (4 * shape.hidden_size**2 + 3 * shape.hidden_size * shape.intermediate_size)
        assert weights + 2 * shape.hidden_size * shape.vocab_size == pytest.approx(parameters, rel=0.01)


@pytest.mark.parametrize("name", ["real", "toy"])
def test_rows_are_as_long_as_stated(name: str) -> None:
    scale: Scale = SCALES[name]
    lengths = [len(row["input_ids"]) for row in chat_rows(scale)]
    assert len(lengths) == scale.rows and max(lengths) <= scale.longest
    assert sum(lengths) / len(lengths) == pytest.approx(scale.mean_length, rel=0.25)


def record(gpu: float | None) -> StageRecord:
    parts = [("cpu", "CodeCarbon cpu_load", 50.0, 50.0), ("dram", "CodeCarbon RAM model", 50.0, 10.0)]
    parts = [*([("gpu", "NVML total energy counter", 5.0, gpu)] if gpu is not None else []), *parts]
    made = stage(sum(part[3] for part in parts), "accounting", "f", parts=parts)
    made["attempts"][0] |= {"id": "a", "trace": "trace.csv.gz"}
    return StageRecord.model_validate(made)


@pytest.mark.parametrize(("gpu", "joules", "boundary"), [(1000.0, 400.0, ["gpu"]), (None, 24.0, ["cpu", "dram"])])
def test_a_window_has_the_joules_between_its_start_and_end(tmp_path, gpu, joules, boundary) -> None:
    """Ten seconds of constant power; the window takes four of them, of the GPU alone where there is one."""
    rows = "".join(f"{s},{'' if gpu is None else 100},{'' if gpu is None else 100 * s},{5 * s},{s},\n" for s in range(1, 11))
    with gzip.open(tmp_path / "trace.csv.gz", "wt") as handle:
        handle.write(f"elapsed_s,gpu_w,gpu_j,cpu_j,dram_j,tokens\n{rows}")
    window = {"name": "w", "start_time": 1003.0, "seconds": 4.0, "tokens": 200, "flops": 8e9, "reason": None, "peer_of": None}
    work = tmp_path / "work"
    found = with_energy(window, record(gpu), work)
    assert found["joules"] == pytest.approx(joules) and found["boundary"] == boundary
    assert found["energy_class"] == ("measured" if gpu else "modelled")
    peer = found | {"name": "peer", "peer_of": "w", "tokens": 50, "peak_bytes": 0}
    device = {"datasheet_flops": 4e9, "matmul_flops": 8e9}
    mine, other = with_figures([found | {"peak_bytes": 0}, peer], device)
    assert mine["joules_per_token"] == pytest.approx(joules / 200) and mine["watts"] == pytest.approx(joules / 4)
    assert (mine["mfu"], mine["of_matmul"], other["ratio"]) == (0.5, 0.25, 4.0)
    assert "| peer | 12 | 4.00 x this |" in table([mine, other])


def test_a_window_outside_of_the_trace_or_without_memory_has_a_reason(tmp_path) -> None:
    with gzip.open(tmp_path / "trace.csv.gz", "wt") as handle:
        handle.write("elapsed_s,gpu_w,gpu_j,cpu_j,dram_j,tokens\n5,100,500,5,1,\n")
    window = {"name": "w", "start_time": 1003.0, "seconds": 4.0, "tokens": 200, "flops": 8e9, "reason": None, "peer_of": None}
    found = with_energy(window, record(500.0), tmp_path / "work")
    assert found["joules"] is None and found["energy_reason"] == "the trace does not cover the window"
    full = found | {"reason": "out of memory: 80 GB", "peak_bytes": 0}
    (row,) = with_figures([full], {"datasheet_flops": None, "matmul_flops": 1.0})
    assert row["tokens_per_second"] is None and "| w | out of memory: 80 GB |" in table([row])
