"""The section `energy`: the meter."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from workflow_scripts.settings.section import Section, Text


class Uncertainty(Section):
    """Relative uncertainty of each method, half-width [%]; the basis of each default is its meaning."""

    nvml_counter: float = Field(
        5.0, ge=0, description="NVML total energy counter: NVIDIA states +/- 5 % for the board power it integrates."
    )
    nvml_power: float = Field(
        10.0, ge=0, description="NVML power over time: +/- 5 % of the sensor and as much for sampling a running average."
    )
    rapl: float = Field(
        5.0, ge=0, description="RAPL: published comparisons with wall meters since Haswell agree within about 5 %."
    )
    codecarbon_cpu: float = Field(
        50.0,
        ge=0,
        description="CPU model: published comparisons with meters differ by up to 40 % (arXiv 2509.22092); at least the "
        "distance to the second model is taken.",
    )
    codecarbon_ram: float = Field(
        50.0, ge=0, description="RAM model: a constant per module or GB; at least the distance to the second model is taken."
    )
    slurm: float = Field(
        10.0, ge=0, description="Slurm ConsumedEnergy: depends on the site's plugin; IPMI meters state 5 to 10 %."
    )
    cpu_share: float = Field(
        20.0,
        ge=0,
        description="Added in quadrature when a host's energy is shared out: idle power by CPUs, the rest by CPU time.",
    )


class Energy(Section):
    """The meter. One setting for the whole campaign, else totals could not be compared."""

    nvml_poll_interval_ms: int = Field(500, ge=10, le=60000, description="Sampling period of all sources [ms].")
    flush_seconds: float = Field(2.0, gt=0, le=600, description="Ledger written to disk at least this often [s].")
    track_cpu: bool = Field(True, description="False leaves CPU and DRAM out of the boundary.")
    total_energy_policy: Literal["measured", "codecarbon", "gpu_only"] = Field(
        "measured", description="What the total sums: best source per component, CodeCarbon only, or GPUs only."
    )
    cpu_scope: Literal["auto", "host", "job"] = Field(
        "auto",
        description="CPU and DRAM on the bill: the whole host, or the job's share; auto: the share when Slurm, a cgroup or the "
        "affinity mask give the job fewer CPUs than the host has.",
    )
    slurm_energy: bool = Field(False, description="Ask Slurm for ConsumedEnergy (component `node`, never in the total).")
    uncertainty_pct: Uncertainty = Uncertainty()
    cpu_tdp_watts: float | None = Field(
        None, gt=0, description="TDP of all CPU sockets of a host, for the model of its CPU [W]; null: CodeCarbon's table."
    )
    dram_watts: float | None = Field(
        None, ge=0, description="Power of a host's memory, for the model of it [W]; null: CodeCarbon's guess of its modules."
    )
    dram_watts_per_gb: float | None = Field(
        None, ge=0, description="The same per GB of the host's memory [W/GB]; one of the two can be given."
    )
    country_iso_code: str | None = Field(
        None, pattern=r"^[A-Z]{3}$", description="Country of the grid, ISO 3166 alpha-3; null: no grams are stated."
    )
    region: str | None = Field(None, description="Province or state, where CodeCarbon knows it (Canada, USA).")
    carbon_intensity_g_per_kwh: float | None = Field(None, ge=0, description="Grid intensity, overrides the country's.")
    pue: float = Field(1.0, ge=1, le=5, description="Power usage effectiveness, reported apart.")
    lock_wait_minutes: float = Field(
        720.0, ge=0, description="How long a stage waits for another process that works on it, before it gives up [min]."
    )
    seconds_before_limit: float = Field(
        120.0,
        ge=0,
        le=3600,
        description="In a Slurm job, how long before its end (time limit, or grace time of a preemption) a stage gets SIGTERM, "
        "to write a checkpoint; 0: never [s].",
    )
    rapl_root: Text = Field("/sys/class/powercap", description="Where the RAPL zones are.")

    @model_validator(mode="after")
    def _one_model_of_memory(self) -> Self:
        if self.dram_watts is not None and self.dram_watts_per_gb is not None:
            raise ValueError(
                f"energy.dram_watts = {self.dram_watts:g} and energy.dram_watts_per_gb = {self.dram_watts_per_gb:g} say the "
                "same thing: give one of them"
            )
        return self
