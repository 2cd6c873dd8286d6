"""The campaign's bill from ledgers written by hand: every column is worked out here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.ledgers import Ledgers
from tests.unit.energy.test_record import figure
from tests.unit.energy.test_state import owner
from workflow_scripts.accounting.bill import bill, main
from workflow_scripts.energy.recover import recover
from workflow_scripts.energy.state import LockedError

OLD, NEW = (
    "results/teacher/logit_cache-old/logit_cache/manifest.json",
    "results/teacher/logit_cache-new/logit_cache/manifest.json",
)
MODEL = "results/kd/final_model/manifest.json"


@pytest.fixture
def campaign(tmp_path: Path) -> Ledgers:
    """A cache whose top-k was changed after a training, so that both were made again, and what went wrong meanwhile.

    logit_caching old    100 J killed (60 saved, resumed) + 50               superseded 110, wasted 40
    student_train old    200                                                  superseded 200
    logit_caching new    parts 30 | 20 failed + 25, merge 5                   useful 60, wasted 20
    student_train new    70 killed with nothing saved + 210                   useful 210, wasted 70
    evaluation           12 killed, never repeated; an attempt without figure wasted 12
    preprocess           33 until now, its meter lives                        in progress 33
    student_train gold   90                                                   useful 90
    """
    made = Ledgers(tmp_path / "results")
    made.attempt("logit_caching", "old", 100.0, None, saved=60.0)
    made.attempt("logit_caching", "old", 50.0, resumed=5, output=OLD)
    made.publish("logit_caching", "old", "teacher/logit_cache-old/stages/logit_caching.json")
    made.attempt("student_train", "train-old", 200.0, experiment="kd", output=MODEL, files=(OLD,))
    made.attempt("logit_caching", "new", 30.0, part="1-of-2")
    made.attempt("logit_caching", "new", 20.0, "failed", part="2-of-2")
    made.attempt("logit_caching", "new", 25.0, part="2-of-2")
    made.attempt("logit_caching", "new", 5.0, parts=2, output=NEW)
    made.publish("logit_caching", "new", "teacher/logit_cache-new/stages/logit_caching.json")
    made.attempt("student_train", "train-new", 70.0, None, experiment="kd", output=MODEL, files=(NEW,))
    made.attempt("student_train", "train-new", 210.0, experiment="kd", output=MODEL, files=(NEW,))
    made.publish("student_train", "train-new", "kd/stages/student_train.json")
    made.attempt("evaluation", "eval", 12.0, None, experiment="kd")
    made.attempt("evaluation", "eval", None, None, experiment="kd")
    made.attempt("preprocess", "corpus", 33.0, None)
    (made.folder("preprocess", "corpus") / "lock.json").write_text(owner())
    made.attempt("student_train", "gold", 90.0, experiment="gold")
    made.publish("student_train", "gold", "gold/stages/student_train.json")
    return made


def columns(row: dict) -> tuple:
    return (*(row[f"{name}_j"] for name in ("useful", "wasted", "superseded", "in_progress")), row["joules"])


def test_every_joule_is_in_one_column(campaign: Ledgers) -> None:
    found = bill(campaign.root).content()
    assert columns(found["total"]) == (360, 142, 310, 33, 845)
    assert {row["stage"]: columns(row) for row in found["stages"]} == {
        "evaluation": (0, 12, 0, 0, 12),
        "logit_caching": (60, 60, 110, 0, 230),
        "preprocess": (0, 0, 0, 33, 33),
        "student_train": (300, 70, 200, 0, 570),
    }
    assert {row["experiment"]: columns(row) for row in found["experiments"]} == {
        "gold": (90, 0, 0, 0, 90),
        "kd": (210, 82, 200, 0, 492),
        "(shared)": (60, 60, 110, 33, 263),
    }
    assert {(row["stage"], row["fingerprint"]): row["status"] for row in found["versions"]} == {
        ("evaluation", "eval"): "unfinished",
        ("logit_caching", "old"): "superseded",
        ("logit_caching", "new"): "current",
        ("preprocess", "corpus"): "in progress",
        ("student_train", "train-old"): "superseded",
        ("student_train", "train-new"): "current",
        ("student_train", "gold"): "current",
    }
    assert found["total"]["kwh"] == pytest.approx(845 / 3.6e6)
    assert found["total"]["without_figure"] == 1 and found["total"]["attempts"] == 13
    assert (found["total"]["class"], found["total"]["boundary"][-1]) == ("measured", "cpu")
    assert found["total"]["uncertainty_kwh"] is None, "an attempt without a figure: the sum is a lower bound"
    assert found["until"] == 13 * 3600 + 100


def test_a_stage_whose_total_is_not_known_leaves_no_uncertainty_and_no_grams_for_the_rest(tmp_path: Path) -> None:
    """B10: its first attempt had no GPU, its second one had; both are on the bill."""
    made = Ledgers(tmp_path / "results")
    made.attempt("student_train", "gold", 300.0, "failed", experiment="gold")
    second = made.attempt("student_train", "gold", 90.0, experiment="gold")
    assert bill(made.root).total.uncertainty_kwh is not None and bill(made.root).total.carbon_grams is not None
    start, *lines = map(json.loads, second.read_text().splitlines())
    for line in lines:
        line["joules"]["gpu"] = figure(5000.0, "NVML total energy counter")
    second.write_text("".join(f"{json.dumps(line)}\n" for line in (start, *lines)))
    found = bill(made.root).total
    assert (found.uncertainty_kwh, found.carbon_grams) == (None, None)


def test_runs_of_one_method_are_added_up(tmp_path: Path, capsys) -> None:
    made = Ledgers(tmp_path / "results")
    for seed, joules in ((0, 40.0), (1, 50.0)):
        made.attempt("student_train", f"kd{seed}", joules, experiment=f"kd-seed{seed}")
        made.publish("student_train", f"kd{seed}", f"kd-seed{seed}/stages/student_train.json")
    made.attempt("student_train", "gold", 90.0, experiment="gold")
    made.publish("student_train", "gold", "gold/stages/student_train.json")
    found = bill(made.root).content()
    assert {row["method"]: columns(row)[0] for row in found["methods"]} == {"kd": 90, "gold": 90}
    assert main([str(made.root)]) == 0 and "\nmethod " in capsys.readouterr().out


def test_the_total_is_the_sum_of_all_attempts_on_disk(campaign: Ledgers) -> None:
    spent = 0.0
    for path in (campaign.root / "state").rglob("*.jsonl"):
        last = [json.loads(line) for line in path.read_text().splitlines()][-1]
        spent += last["joules"]["cpu"]["joules"] or 0.0
    total = bill(campaign.root).content()["total"]
    assert total["joules"] == pytest.approx(spent) == pytest.approx(sum(columns(total)[:4]))


def test_the_same_ledgers_give_the_same_bill_and_nothing_is_written(campaign: Ledgers, capsys) -> None:
    before = {path: path.read_bytes() for path in campaign.root.rglob("*") if path.is_file()}
    outputs = []
    for _ in range(2):
        assert main([str(campaign.root), "--json"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert {path: path.read_bytes() for path in campaign.root.rglob("*") if path.is_file()} == before


def test_damage_is_named_and_the_rest_is_charged(campaign: Ledgers) -> None:
    attempts = campaign.folder("student_train", "gold") / "attempts"
    (attempts / "cut.jsonl").write_text('{"event": "sta\n')
    (attempts / "foreign.jsonl").write_text('{"event": "start", "schema": "energy-ledger/1", "stage": "other"}\n')
    (attempts / "poor.jsonl").write_text('{"event": "start", "schema": "energy-ledger/1", "stage": "student_train"}\n')
    (attempts / "number.jsonl").write_text("7\n")
    (attempts / "silent.jsonl").write_text("")
    (campaign.root / "gold" / "stages" / "evaluation.json").write_text('{"schema": "energy-stage/1", ')
    found = bill(campaign.root).content()
    assert columns(found["total"]) == (360, 142, 310, 33, 845)
    reasons = {Path(entry["path"]).name: entry["reason"] for entry in found["damaged"]}
    assert set(reasons) == {"cut.jsonl", "foreign.jsonl", "poor.jsonl", "number.jsonl", "evaluation.json"}
    assert "no readable start line" in reasons["cut.jsonl"] and "of stage 'other'" in reasons["foreign.jsonl"]
    assert any("1 ledger(s) have no whole line" in note and "silent.jsonl" in note for note in found["notes"])
    assert sum(note.startswith("damaged, left out: ") for note in found["notes"]) == 5


def test_a_record_whose_only_ledger_is_damaged_is_charged_as_it_stands(campaign: Ledgers) -> None:
    (ledger,) = (campaign.folder("student_train", "gold") / "attempts").iterdir()
    ledger.write_bytes(b"\x00" * 4096 + b"\n")
    found = bill(campaign.root).content()
    assert columns(found["total"]) == (360, 142, 310, 33, 845)
    assert [Path(entry["path"]) for entry in found["damaged"]] == [ledger]
    (row,) = (row for row in found["versions"] if row["fingerprint"] == "gold")
    assert row["status"] == "current, by its record alone" and row["experiment"] == "gold"


def test_records_elsewhere_are_found_by_their_ledgers(tmp_path: Path) -> None:
    """output.run_dir may lie outside output.root."""
    made = Ledgers(tmp_path / "results")
    outside = tmp_path / "runs" / "kd" / "student_train.json"
    made.attempt("student_train", "mark", 7.0, experiment="kd", record=str(outside))
    assert columns(bill(made.root).content()["total"]) == (0, 0, 7, 0, 7), "finished, and its record is nowhere"
    made.publish("student_train", "mark", str(outside))
    assert columns(bill(made.root).content()["total"]) == (7, 0, 0, 0, 7)


def test_parts_that_are_not_merged_are_charged_once(tmp_path: Path) -> None:
    made = Ledgers(tmp_path / "results")
    made.attempt("logit_caching", "m", 3.0, part="1-of-2")
    made.attempt("logit_caching", "m", 4.0, None, part="2-of-2")
    assert columns(bill(made.root).content()["total"]) == (0, 7, 0, 0, 7)
    (made.folder("logit_caching", "m", "2-of-2") / "lock.json").write_text(owner())
    assert columns(bill(made.root).content()["total"]) == (0, 0, 0, 7, 7), "a part is worked on, so the stage is"
    (made.folder("logit_caching", "m", "2-of-2") / "lock.json").write_text('{"host"')
    assert columns(bill(made.root).content()["total"]) == (0, 0, 0, 7, 7), "its owner is writing its name"
    (made.folder("logit_caching", "m", "2-of-2") / "lock.json").write_text(owner(started=1))
    assert columns(bill(made.root).content()["total"]) == (0, 7, 0, 0, 7), "the lock of a dead process"


def test_a_deleted_state_folder_leaves_what_the_record_says(campaign: Ledgers) -> None:
    folder = campaign.folder("student_train", "gold")
    copy = json.loads((campaign.root / "gold" / "stages" / "student_train.json").read_text()) | {"shared_by": ["gold"]}
    copy["provenance"]["fingerprint"] = "made elsewhere"
    (campaign.root / "gold" / "stages" / "teacher_generation.json").write_text(json.dumps(copy))
    copy["provenance"] |= {"fingerprint": "first system", "imported": {"system": "first"}}
    del copy["shared_by"]
    (campaign.root / "old" / "stages").mkdir(parents=True)
    (campaign.root / "old" / "stages" / "student_train.json").write_text(json.dumps(copy))
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
    found = bill(campaign.root).content()
    assert columns(found["total"]) == (360, 142, 310, 33, 845), "the copy of a record from elsewhere is no cost of this folder"
    assert any("1 record(s) have no readable ledger" in note for note in found["notes"])
    assert any("1 imported record(s)" in note for note in found["notes"])


def test_a_stage_without_any_figure_is_unknown_and_not_zero(tmp_path: Path, capsys) -> None:
    made = Ledgers(tmp_path / "results")
    made.attempt("experiment_summary", "m", None, experiment="kd")
    made.publish("experiment_summary", "m", "kd/stages/experiment_summary.json")
    assert columns(bill(made.root).content()["total"]) == (None,) * 5
    assert main([str(made.root)]) == 0
    (line,) = (text for text in capsys.readouterr().out.splitlines() if text.startswith("experiment_summary"))
    assert line.split()[3:] == ["?"] * 5


def test_an_empty_folder_is_an_error_with_the_remedy(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no attempt under" in capsys.readouterr().err


def test_the_command_prints_the_table(campaign: Ledgers) -> None:
    command = [sys.executable, "-m", "workflow_scripts.accounting.bill", str(campaign.root)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    (line, _) = (text.split() for text in result.stdout.splitlines() if text.startswith("total"))
    assert line == ["total", "7", "13", "0.000100", "0.000039", "0.000086", "0.000009", "0.000235"]


# ---- recover


def test_recover_adds_up_the_parts_of_a_stage_and_makes_each_part_a_record(campaign: Ledgers) -> None:
    folder = campaign.folder("logit_caching", "new")
    assert recover(folder).total_energy_joules == 80
    assert recover(folder / "parts" / "2-of-2").total_energy_joules == 45
    command = [sys.executable, "-m", "workflow_scripts.energy.recover", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert result.returncode == 0, result.stdout
    joules = {str(path.parent.relative_to(folder)): json.loads(path.read_text()) for path in folder.rglob("record.json")}
    assert {name: record["total_energy_joules"] for name, record in joules.items()} == {
        ".": 80,
        "parts/1-of-2": 30,
        "parts/2-of-2": 45,
    }
    assert joules["."]["parts"] == 2 and joules["."]["wasted_j"] == 20


def test_recover_leaves_a_stage_alone_whose_part_is_worked_on(campaign: Ledgers) -> None:
    folder = campaign.folder("logit_caching", "new")
    (folder / "parts" / "1-of-2" / "lock.json").write_text(owner())
    with pytest.raises(LockedError, match=f"part 1-of-2 is being worked on by process {os.getpid()}"):
        recover(folder)
    assert not (folder / "lock.json").exists() and not (folder / "record.json").exists()
