"""Values that the first system could write and that cannot be: null, with the reason."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.unit.importers import first_system as old

START = old.START


def test_snapshots_go_by_number_and_a_cpu_that_stands_still_is_unknown(stages, run) -> None:
    """By name step 9800 would be the last: 1.4 J per token where step 10200 has 2.0."""
    snapshots = [old.snapshot(step, seconds=step / 10, gpu=20.0 * step, cpu_energy_joules=77.0) for step in (200, 9800, 10200)]
    old.write(stages / "kd_x", *snapshots, settings=old.config("kd_x"))
    result = run()
    stage = result.stage()
    assert stage["total_energy_joules"] == 204_000
    assert (stage["tokens_processed"], stage["joules_per_token"]) == (102_000, 2.0)
    assert (stage["status"], stage["useful_j"], stage["wasted_j"]) == ("partial", None, None)
    assert stage["attempts"][0]["outcome"] == "lost"
    assert stage["energy"]["cpu"]["joules"] is None
    assert "cpu_energy_joules = 77 at every step (200, 9800, 10200)" in stage["energy"]["cpu"]["reason"]
    assert (stage["energy"]["total"]["boundary"], stage["energy"]["total"]["class"]) == (["gpu"], "integrated")
    assert stage["codecarbon_energy_kwh"] is None, "in a snapshot CodeCarbon's row is an earlier attempt's"
    assert "2 earlier snapshot(s) of kd_x: step 10200 holds their energy" in result.report


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens_processed": 0}, "tokens_processed = 0: energy was spent"),
        ({"joules_per_token": 99.0}, "are not of one instant: the record's own joules_per_token = 99"),
        ({"tokens_processed": None, "joules_per_token": 0.0}, "tokens_processed is missing"),
        ({"tokens_processed": -3}, "tokens_processed = -3"),
    ],
)
def test_impossible_token_counts_are_null(stages, run, change, reason) -> None:
    old.write(stages / "kd_x", {**old.stage(), **change}, settings=old.config("kd_x"))
    result = run()
    stage = result.stage()
    assert (stage["tokens_processed"], stage["joules_per_token"], stage["tokens_per_second"]) == (None, None, None)
    assert reason in " ".join(stage["warnings"])
    assert reason in result.report
    assert stage["total_energy_joules"] == pytest.approx(236_000), "the energy is known all the same"


def test_tokens_and_energy_of_different_instants(stages, run) -> None:
    late = old.snapshot(300, snapshot_time="2023-11-14T18:07:00")
    old.write(stages / "kd_late", late | {"stage_id": "kd_late"}, settings=old.config("kd_late"))
    still = [old.snapshot(n, "kd_still", seconds=10.0 * n, gpu=100.0 * n, tokens_processed=5) for n in (1, 2)]
    old.write(stages / "kd_still", *still, settings=old.config("kd_still"))
    falls = [old.snapshot(n, "kd_falls", seconds=10.0 * n, gpu=100.0 * n, tokens_processed=5 - n) for n in (1, 2)]
    old.write(stages / "kd_falls", *falls, settings=old.config("kd_falls"))
    result = run()
    reasons = {name: " ".join(result.stage(name)["warnings"]) for name in result.summaries}
    assert all(result.stage(name)["tokens_processed"] is None for name in result.summaries)
    assert "snapshot_time and end_time are" in reasons["kd_late"]
    assert "tokens_processed = 5 at every step while energy was spent" in reasons["kd_still"]
    assert "tokens_processed falls from 4 at step 1 to 3 at step 2" in reasons["kd_falls"]


def test_padded_counts_of_a_generation(stages, run) -> None:
    """100 prompts at 256 new tokens are 25,600 tokens at most; the code that counted 25,601 counted 20,000, too."""
    for name, tokens in (("synthetic_a", 20_000), ("synthetic_b", 25_601)):
        old.write(stages / name, old.stage(name, tokens_processed=tokens), settings=old.config(name, "sft"))
    result = run()
    for name, claimed, per_prompt in (("synthetic_a", 20_000, 200), ("synthetic_b", 25_601, 256)):
        stage = result.stage(name, "teacher_generation")
        assert (stage["tokens_processed"], stage["work"]["generated"], stage["joules_per_token"]) == (None, None, None)
        assert stage["provenance"]["imported"]["tokens_claimed"] == claimed
        text = (
            f"{claimed:,} ({per_prompt} per prompt of 100, at max_new_tokens = 256): the first system counted padded positions"
        )
        assert text in " ".join(stage["warnings"])
    assert result.summaries["synthetic_a"]["joules_per_token"] is None, "it is no training"


def test_the_configuration_is_the_stages_own(tmp_path, stages, run) -> None:
    """A text of 50 prompts at 512 tokens in Canada, used by a training that says 100 prompts at 256 in Germany."""
    own = {"max_gen_examples": 50, "generation": {"max_new_tokens": 512}}
    old.write(stages / "synthetic_t", old.stage("synthetic_t"), settings=old.config("synthetic_t", "sft", synthetic_data=own))
    settings = old.config("sft_a", "sft", energy={"country_iso_code": "DEU"})
    old.write(stages / "sft_a", old.stage("sft_a", start=START + 5000), settings=settings)
    result = run(str(tmp_path / "run"), "--into", "synthetic_t=sft_a")
    stage = result.stage("sft_a", "teacher_generation")
    assert "1000 per prompt of 50, at max_new_tokens = 512" in " ".join(stage["warnings"])
    assert stage["carbon"]["intensity_g_per_kwh"] != result.stage("sft_a")["carbon"]["intensity_g_per_kwh"]


def test_preprocessing_counted_examples(stages, run) -> None:
    old.write(stages / "tulu_preprocess", old.stage("tulu_preprocess_dataset", tokens_processed=900))
    stage = run().stage("tulu_preprocess_dataset", "preprocess")
    assert (stage["tokens_processed"], stage["work"]["examples"], stage["role"]) == (None, 900, "data")


def test_rapl_read_at_both_ends_counts_only_where_it_cannot_have_wrapped(stages, run) -> None:
    """The smallest package range, 65,533 J, at 500 W lasts 131 s."""
    for name, seconds in (("kd_short", 130.0), ("kd_long", 140.0)):
        record = old.stage(name, seconds=seconds, cpu_energy_joules=5000.0)
        old.write(stages / name, record, settings=old.config(name))
    result = run()
    short, long = (result.stage(name)["energy"] for name in ("kd_short", "kd_long"))
    assert (short["cpu"]["joules"], short["cpu"]["class"], short["total"]["class"]) == (5000, "measured", "integrated")
    assert short["total"]["joules"] == 205_000
    assert (long["cpu"]["joules"], long["total"]["boundary"]) == (None, ["gpu"])
    assert "may have wrapped any number of times" in long["cpu"]["reason"]


def test_cpu_figure_without_origin_and_without_value(stages, run) -> None:
    bare = {key: value for key, value in old.stage("kd_bare").items() if not key.startswith("codecarbon")}
    old.write(stages / "kd_bare", bare)
    old.write(stages / "kd_zero", old.stage("kd_zero", codecarbon_cpu_energy_kwh=0.0))
    nothing = old.stage("kd_nothing", codecarbon_cpu_energy_kwh=0.0, gpu=0.0, codecarbon_gpu_energy_kwh=0.0)
    old.write(stages / "kd_nothing", nothing)
    result = run()
    assert "RAPL's or CodeCarbon's" in result.stage("kd_bare")["energy"]["cpu"]["reason"]
    assert "no energy of a CPU that ran" in result.stage("kd_zero")["energy"]["cpu"]["reason"]
    empty = result.stage("kd_nothing")
    assert (empty["total_energy_joules"], empty["gpu_energy_joules"], empty["joules_per_token"]) == (None, None, None)
    assert empty["energy"]["total"]["class"] == "unavailable"
    assert "gpu_energy_joules is 0 or missing" in empty["energy"]["total"]["reason"]


def test_codecarbon_figures_of_another_attempt(tmp_path, stages, run) -> None:
    """The last row of a project was stamped on every later record: the counter beside it, or its own length, gives it away."""
    old.write(stages / "kd_far", old.stage("kd_far", codecarbon_gpu_energy_kwh=0.01), settings=old.config("kd_far"))
    old.write(stages / "kd_row", old.stage("kd_row"), settings=old.config("kd_row"))
    old.emissions(
        tmp_path / "run" / "codecarbon" / "emissions.csv", old.row("kd_row", "r1", "2023-11-14T12:00:00", 77, 0.01, 0.05)
    )
    result = run()
    far, stamped = result.stage("kd_far"), result.stage("kd_row")
    assert (far["cpu_energy_joules"], far["codecarbon_energy_kwh"], far["energy"]["gpu"]["crosscheck"]) == (None, None, None)
    assert "CodeCarbon's GPU figure beside it is 36,000 J where the samples give 200,000 J" in far["energy"]["cpu"]["reason"]
    assert (
        "1 of 2 attempts is not known: its CPU figure is that of CodeCarbon's run r1, which took 77 s" in stamped["warnings"][1]
    )
    assert [a["joules"]["cpu"] for a in stamped["attempts"]] == [pytest.approx(36_000), None]
    assert stamped["wasted_j"] == pytest.approx(0.06 * 3.6e6), "the row is an attempt of the stage, which began anew"
    assert stamped["total_energy_joules"] == pytest.approx(200_000 + 0.06 * 3.6e6)
    assert "row r1, 77 s, is a further attempt of kd_row" in result.report
    assert set(result.summaries) == {"kd_far", "kd_row"}


@pytest.mark.parametrize(("hours", "known"), [(-5, True), (0, True), (9.5, True), (-5, False)])
def test_instants_are_compared_in_real_time(stages, run, hours, known) -> None:
    """A snapshot's local time is 73,800 s (82 quarters of an hour) off; its siblings tell the zone, or nothing does."""
    taken = [
        time.isoformat() for time in (datetime(2023, 11, 14, 22, 30) + timedelta(hours=hours, seconds=s) for s in (1, 73_801))
    ]
    for n in range(2 if known else 0):
        old.write(stages / f"kd_{n}", old.snapshot(100, f"kd_{n}", snapshot_time=taken[0]), settings=old.config(f"kd_{n}"))
    old.write(stages / "kd_off", old.snapshot(100, "kd_off", snapshot_time=taken[1]), settings=old.config("kd_off"))
    result = run()
    stage = result.stage("kd_off")
    if known:
        assert (stage["tokens_processed"], result.stage("kd_0")["tokens_processed"]) == (None, 1000)
        assert "snapshot_time and end_time are 73,801 s apart" in " ".join(stage["warnings"])
    else:
        assert "the time zone of snapshot_time is not known" in " ".join(stage["warnings"])


def test_summer_time_is_no_contradiction(stages, run) -> None:
    for name, start, hours in (("kd_w", START, -5), ("kd_s", START + 180 * 86_400, -4)):
        for step, seconds in ((100, 1000.0), (200, 2000.0)):
            local = datetime.fromtimestamp(start + seconds + hours * 3600, UTC).replace(tzinfo=None).isoformat()
            record = old.snapshot(step, name, start, seconds, 100.0 * step, snapshot_time=local)
            old.write(stages / name, record, settings=old.config(name))
    result = run()
    assert [result.stage(name)["tokens_processed"] for name in ("kd_w", "kd_s")] == [2000, 2000]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "many", [1], True])
def test_a_figure_that_is_no_number_is_named(stages, run, value) -> None:
    """CodeCarbon's counter stands for the GPU: said in the report, and in the record."""
    old.write(stages / "kd_x", old.stage() | {"gpu_energy_joules": value}, settings=old.config("kd_x"))
    result = run()
    assert result.counted("refused") == 1
    assert f"gpu_energy_joules = {value!r} is no finite number" in result.report
    assert f"gpu_energy_joules = {value!r} is no finite number: it is not known" in result.stage()["warnings"]
    assert result.stage()["energy"]["gpu"]["method"] == "NVML total energy counter, read by CodeCarbon"
