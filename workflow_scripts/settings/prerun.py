"""The section `prerun`: what is checked before anything expensive starts."""

from __future__ import annotations

from pydantic import Field

from workflow_scripts.settings.section import Name, Section


class Hardware(Section):
    """What the prerun checks before anything expensive starts."""

    host_kind: Name = Field("local", description="Name of this kind of host; one prerun per kind.")
    assert_gpu_name: str | None = Field(None, description="Text every GPU's name must contain.")
    assert_gpu_count: int | None = Field(None, ge=0, description="Number of GPUs the job must see.")
    assert_cpu_brand: str | None = Field(None, description="Text the CPU's brand must contain.")
    min_free_memory_gb: float = Field(1.0, ge=0, description="Free main memory needed [GB].")


class Prerun(Section):
    """Checks of the meter on this host."""

    idle_seconds: float = Field(5.0, ge=2, description="Length of the idle baseline [s].")
    burn_in_seconds: float = Field(5.0, ge=2.5, description="Length of the load that the whole meter measures [s].")
    sampling_tolerance: float = Field(0.1, gt=0, le=1, description="Joules at two periods must agree within this.")
    max_idle_cpu_percent: float = Field(
        50.0, gt=0, le=100, description="A busier host has no idle baseline: reported as not stable."
    )
