"""Every configuration key: its type, default, unit and bounds.

The reference in ``config/README.md`` and the JSON schema ``config/schema.json`` are generated from these models
(`python -m workflow_scripts.settings.reference`), so a key is described once. Models are strict (a quoted number is not
a number) and closed (an unknown key is refused).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from workflow_scripts.settings.generation import Filtering, Generation
from workflow_scripts.settings.outcome import Comparison, Evaluation, Wandb
from workflow_scripts.settings.sources import DatasetSource, ModelSource, Name, Section, Text
from workflow_scripts.settings.training_block import Dtype as Dtype
from workflow_scripts.settings.training_block import Training as Training

Pipeline = Literal["kd", "sft", "dpo", "baseline"]


class Experiment(Section):
    """What this experiment is."""

    seed: int = Field(42, ge=0, description="Seed of the training: data order, dropout.")
    description: str = Field("", description="One sentence for tables and the report.")


class Model(Section):
    """Teacher, student and starting policy: each a name in `models`, a folder, or a Hugging Face id."""

    teacher: Text = Field(description="The model that is distilled.")
    student: Text = Field(description="The model that is trained (kd, sft, baseline; dpo without `policy`).")
    policy: Name | None = Field(
        None, description="dpo: name of the experiment whose final model the policy starts from. Null: the student."
    )
    chat_template: Text = Field(
        "smollm2",
        description="Name of a shipped template or path of a .jinja file, with {% generation %} markers around "
        "assistant turns. `tokenizer` takes the student tokenizer's own.",
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = Field("sdpa", description="Attention kernel.")


class Data(Section):
    """The corpus that every pipeline starts from."""

    dataset_choice: Name = Field(description="Which entry of `datasets` is used.")
    datasets: dict[Name, DatasetSource] = Field(description="Known corpora by name.")
    max_sequence_length: int = Field(512, ge=8, description="Longer rows are cut and marked [tokens].")
    train_examples: int = Field(ge=1, description="Rows of the training split at most.")
    evaluation_examples: int = Field(ge=1, description="Held-out rows, never trained on.")
    seed: int = Field(0, ge=0, description="Seed of the split.")

    @model_validator(mode="after")
    def _choice_known(self) -> Data:
        if self.dataset_choice not in self.datasets:
            raise ValueError(f"dataset_choice = {self.dataset_choice!r} is not one of {sorted(self.datasets)}")
        return self


class Distillation(Section):
    """Knowledge distillation on cached teacher logits."""

    alpha: float = Field(0.5, ge=0, le=1, description="Weight of cross entropy; 1 - alpha weighs the KL term.")
    temperature: float = Field(1.0, gt=0, le=20, description="Softmax temperature T of the KL term.")
    cache_temperatures: list[Annotated[float, Field(gt=0, le=20)]] = Field(
        [1.0], description="Temperatures the cache is made for; `temperature` must be one of them."
    )
    sampling: Literal["top_k", "random"] = Field(
        "top_k",
        description="What the cache keeps per position: the top k logits, or tokens drawn from the teacher's distribution at "
        "each cache temperature (unbiased gradient, about 40 bytes).",
    )
    top_k_logits: int = Field(64, ge=1, description="sampling top_k: teacher logits kept per position.")
    tail: Literal["ghost", "renormalise", "zero"] = Field(
        "ghost", description="sampling top_k: mass outside the top k: one extra bucket, spread over the k, or ignored."
    )
    sampling_draws: int = Field(50, ge=1, le=4096, description="sampling random: draws per position.")
    sampling_seed: int = Field(0, ge=0, description="sampling random: seed; each example derives its own from it.")
    shard_examples: int = Field(64, ge=1, description="Examples per cache shard (the unit of resumption).")
    batch_size: int = Field(8, ge=1, description="Rows per teacher forward pass.")
    logprob_cache_path: Text | None = Field(
        None, description="Folder for the shards, as <path>/teacher_logprobs. Null: beside the manifest."
    )

    @model_validator(mode="after")
    def _cached_temperature(self) -> Distillation:
        if self.temperature not in self.cache_temperatures:
            raise ValueError(
                f"temperature = {self.temperature}, but cache_temperatures = {self.cache_temperatures}: "
                "add it there (the cache is rebuilt) or choose one of these"
            )
        return self


class SyntheticData(Section):
    """Teacher-written answers for SFT."""

    max_gen_examples: int = Field(ge=1, description="Training prompts that the teacher answers.")
    generation: Generation
    filtering: Filtering = Filtering()
    synthetic_dataset_path: Text | None = Field(None, description="Folder of the dataset. Null: beside the manifest.")
    use_existing: bool = Field(
        False, description="Use the dataset already at synthetic_dataset_path; its energy is read from its record."
    )

    @model_validator(mode="after")
    def _existing_needs_path(self) -> SyntheticData:
        if self.use_existing and self.synthetic_dataset_path is None:
            raise ValueError("use_existing = true needs synthetic_dataset_path")
        return self


class JudgeLabeling(Section):
    """How the teacher ranks its samples."""

    scoring_method: Literal["likelihood_mean", "likelihood"] = Field(
        "likelihood_mean", description="Log-likelihood per token, or its sum (which favours short answers)."
    )
    min_margin: float = Field(0.0, ge=0, description="Pairs whose scores differ by less are dropped [nats].")


class Dpo(Section):
    """Direct preference optimisation on teacher-ranked pairs."""

    beta: float = Field(0.1, gt=0, description="Strength of the pull to the reference policy.")
    loss_type: Literal["sigmoid", "sigmoid_norm"] = Field("sigmoid", description="TRL's name of the DPO loss.")
    samples_per_prompt: int = Field(2, ge=2, description="Samples ranked per prompt.")
    train_prompts: int = Field(ge=1, description="Prompts of the training split.")
    evaluation_prompts: int = Field(ge=1, description="Prompts of the held-out split.")
    keep_truncated: bool = Field(False, description="Rank answers that hit max_new_tokens without an end token, too.")
    generation: Generation
    judge_labeling: JudgeLabeling = JudgeLabeling()


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
        description="CPU load x TDP: no published bound; CodeCarbon's own modes differ by a factor of 2 on one load.",
    )
    codecarbon_ram: float = Field(
        50.0, ge=0, description="RAM model: a constant per module or host; same basis as the CPU model."
    )
    slurm: float = Field(
        10.0, ge=0, description="Slurm ConsumedEnergy: depends on the site's plugin; IPMI meters state 5 to 10 %."
    )
    cpu_share: float = Field(
        20.0,
        ge=0,
        description="Added in quadrature when a host's CPU energy is shared out by CPU time (idle power follows it).",
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
        description="CPU and DRAM on the bill: the whole host, or the job's share of CPU time; auto: the share when Slurm gave "
        "the job fewer CPUs than the host has.",
    )
    slurm_energy: bool = Field(False, description="Ask Slurm for ConsumedEnergy (component `node`, never in the total).")
    uncertainty_pct: Uncertainty = Uncertainty()
    offline_mode: bool = Field(True, description="CodeCarbon without network (false: it looks up the location).")
    country_iso_code: str = Field("CAN", pattern=r"^[A-Z]{3}$", description="Country of the grid, ISO 3166 alpha-3.")
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


class Output(Section):
    """Where things lie. `{experiment}` is replaced by the experiment's name."""

    root: Text = Field("results", description="Shared results: models, corpus, teacher artefacts, state, comparison.")
    output_dir: Text | None = Field(None, description="Models and evaluation of an experiment. Null: <root>/{experiment}.")
    run_dir: Text | None = Field(None, description="Summary, stage records and CodeCarbon rows. Null: <root>/{experiment}.")
    download_dir: Text | None = Field(None, description="Archives of packaged models and data. Null: <root>/downloads.")

    @model_validator(mode="after")
    def _placeholders(self) -> Output:
        for key in ("output_dir", "run_dir"):
            value = getattr(self, key)
            if value is not None and value.count("{experiment}") != 1:
                raise ValueError(f"{key} = {value!r} must contain {{experiment}} exactly once")
        for key in ("root", "output_dir", "run_dir", "download_dir"):
            rest = (getattr(self, key) or "").replace("{experiment}", "")
            if "{" in rest or "}" in rest:
                raise ValueError(f"{key} must not contain braces other than {{experiment}}")
        return self

    def experiment_dir(self) -> str:
        """Pattern of the folder with an experiment's models."""
        return self.output_dir or f"{self.root}/{{experiment}}"

    def record_dir(self) -> str:
        """Pattern of the folder with an experiment's records."""
        return self.run_dir or f"{self.root}/{{experiment}}"

    def folders(self) -> list[str]:
        """Folders that the results go to, above those of one experiment."""
        patterns = (self.experiment_dir(), self.record_dir())
        return [self.root, *(str(Path(pattern.partition("{experiment}")[0])) for pattern in patterns), self.downloads()]

    def downloads(self) -> str:
        """Folder of downloaded archives."""
        return self.download_dir or f"{self.root}/downloads"


class Scatter(Section):
    """Into how many parts (Slurm jobs) the teacher's work is split. Changes no result; holds when an artefact is made next."""

    logit_caching: int = Field(1, ge=1, le=10000, description="Parts of each logit cache; at most its shards.")
    synthetic_generation: int = Field(1, ge=1, le=10000, description="Parts of each generation; at most its batches.")
    preference_dataset: int = Field(1, ge=1, le=10000, description="Parts of each preference data set; at most its batches.")


CAMPAIGN_SECTIONS = ("energy", "output", "comparison", "hardware", "prerun", "scatter")


class Settings(Section):
    """The whole configuration of one experiment."""

    pipeline: Pipeline = Field(description="kd, sft, dpo or baseline (gold data).")
    experiment: Experiment = Experiment()
    model: Model
    models: dict[Name, ModelSource] = Field({}, description="Registry of models that a rule makes.")
    data: Data
    distillation: Distillation = Distillation()
    synthetic_data: SyntheticData
    dpo: Dpo
    dpo_preference_dataset_path: Text | None = Field(
        None, description="Folder of the preference dataset. Null: beside the manifest."
    )
    training: Training
    evaluation: Evaluation = Evaluation()
    energy: Energy = Energy()
    wandb: Wandb = Wandb()
    hardware: Hardware = Hardware()
    scatter: Scatter = Scatter()
    prerun: Prerun = Prerun()
    output: Output = Output()
    comparison: Comparison

    @model_validator(mode="after")
    def _policy_only_for_dpo(self) -> Settings:
        if self.model.policy is not None and self.pipeline != "dpo":
            raise ValueError(f"model.policy is read by pipeline dpo only, not by {self.pipeline}")
        return self

    @model_validator(mode="after")
    def _no_more_parts_than_units(self) -> Settings:
        prompts_per_batch = max(1, self.dpo.generation.batch_size // self.dpo.samples_per_prompt)
        stage, units, keys = {
            "kd": ("logit_caching", self.data.train_examples / self.distillation.shard_examples, "distillation.shard_examples"),
            "sft": (
                "synthetic_generation",
                self.synthetic_data.max_gen_examples / self.synthetic_data.generation.batch_size,
                "synthetic_data.generation.batch_size",
            ),
            "dpo": (
                "preference_dataset",
                (self.dpo.train_prompts + self.dpo.evaluation_prompts) / prompts_per_batch,
                "dpo.generation.batch_size",
            ),
        }.get(self.pipeline, (None, 1.0, ""))
        parts = getattr(self.scatter, stage) if stage else 1
        if parts > math.ceil(units):
            raise ValueError(
                f"scatter.{stage} = {parts}, but the work has {math.ceil(units)} unit(s) at most: lower it, or lower {keys}"
            )
        return self
