"""The study's data, from which its table and its verdicts can be computed again.

    python -m benchmarks.study RESULTS      from a finished `make study`: docs/study/, the tables of docs/study.md and README.md
    python -m benchmarks.study RESULTS --students    from config/campaigns/study_students.yaml: students.json and its table

docs/study/ gets comparison.json, figures, and runs.csv with one observation a line, named by its column `what`:

    evaluation   of a run at `number`: `joules` of work until then, `loss` [nats/token]; the last is the final model's
    training     `joules` of the whole training, start-up and saves included
    row          held-out row `number` of the final model: `loss` summed over its `tokens` [nats]
    teacher      `joules` of the `number`-th measurement of the teacher's output that the method uses; without a seed
    scenario     `factor` on the joules of a run, or (without a seed) of that measurement, by energy model or instrument

and students.json, a list of comparisons in which each run is compared with the baseline of its own student.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from workflow_scripts.accounting.arms import Axis, arms_of
from workflow_scripts.accounting.groups import group
from workflow_scripts.accounting.load import load
from workflow_scripts.accounting.rows import Comparison
from workflow_scripts.accounting.verdicts import Arm, Run, Verdict, judge
from workflow_scripts.artefact import read_json, write_json
from workflow_scripts.report.pages import pipe, render
from workflow_scripts.report.rounding import number

FRONT = Path(__file__).parents[1] / "README.md"
PAGE = FRONT.parent / "docs" / "study.md"
DATA = PAGE.with_suffix("")
MARKS = ("<!-- study -->\n", "<!-- end of study -->\n")
OF_STUDENTS = ("<!-- students -->\n", "<!-- end of students -->\n")
SWEPT = "demo_baseline-student"  # the names of the students' baselines begin with it
COLUMNS = ("method", "seed", "what", "number", "name", "joules", "loss", "tokens", "factor")
FIGURES = ("energy_quality", "cost_by_reuse", "energy_by_stage", "quality_by_row")


def observations(arm: Arm) -> Iterator[dict[str, Any]]:
    """Everything that a verdict is computed from, a line each."""
    for run in arm.runs:
        own: dict[str, Any] = {"method": arm.name, "seed": run.seed}
        for k, (joules, loss) in enumerate(zip(run.joules, run.loss, strict=True)):
            yield own | {"what": "evaluation", "number": k, "joules": joules, "loss": loss}
        yield own | {"what": "training", "joules": run.whole}
        for k, (loss, tokens) in enumerate(zip(run.rows, run.tokens, strict=True)):
            yield own | {"what": "row", "number": k, "loss": loss, "tokens": tokens}
        yield from (own | {"what": "scenario", "name": name, "factor": factor} for name, factor in run.scenarios.items())
    for k, (joules, scenarios) in enumerate(arm.teacher):
        own = {"method": arm.name, "number": k}
        yield own | {"what": "teacher", "joules": joules}
        yield from (own | {"what": "scenario", "name": name, "factor": factor} for name, factor in scenarios.items())


def read(path: Path) -> dict[str, Arm]:
    """The methods of runs.csv, by name."""
    table = pd.read_csv(path, dtype={"seed": "Int64", "number": "Int64"})
    return {str(name): _arm(str(name), lines) for name, lines in table.groupby("method", sort=False)}


def _arm(name: str, lines: pd.DataFrame) -> Arm:
    runs = [_run(int(str(seed)), own) for seed, own in lines.dropna(subset="seed").groupby("seed", sort=False)]
    shared = lines[lines.seed.isna()]
    teachers = [
        (float(own.joules.dropna().iloc[0]), _scenarios(own)) for _, own in shared.groupby("number", sort=False) if len(own)
    ]
    return Arm(name, runs, teachers)


def _run(seed: int, lines: pd.DataFrame) -> Run:
    curve, rows = (lines[lines.what == what] for what in ("evaluation", "row"))
    return Run(
        curve.joules.to_numpy(),
        curve.loss.to_numpy(),
        float(lines[lines.what == "training"].joules.iloc[0]),
        seed,
        rows.loss.to_numpy(),
        rows.tokens.to_numpy(),
        _scenarios(lines),
    )


def _scenarios(lines: pd.DataFrame) -> dict[str, float]:
    found = lines[lines.what == "scenario"]
    return dict(zip(found.name, found.factor, strict=True)) if len(found) else {}


def verdicts(arms: dict[str, Arm], baseline: str) -> dict[str, Verdict]:
    """The verdict on every method but the baseline."""
    methods = [name for name in arms if name != baseline]
    return {name: judge(arms[name], arms[baseline], methods=len(methods)) for name in methods}


def page(text: str, content: str, marks: tuple[str, str] = MARKS) -> str:
    """A page with the content between its marks."""
    before, after = text.split(marks[0])[0], text.split(marks[1])[1]
    return f"{before}{marks[0]}\n{content.strip()}\n\n{marks[1]}{after}"


def of_students(comparisons: Iterable[Comparison]) -> str:
    """The table of all students' runs, each under its own baseline, and what their teacher's output costs a student."""
    rows = []
    for comparison in comparisons:
        answers = {row.experiment: row for row in comparison.answers}
        for gold in dict.fromkeys(row.baseline for row in comparison.answers):
            student = gold.removeprefix(SWEPT).removesuffix("-seed0")
            for row in comparison.groups:
                said = answers.get(row.group)
                if gold not in (row.group, said and said.baseline):
                    continue
                name = row.group.replace(f"-student{student}", "").removesuffix("-seed0")
                figures = [row.column(f"{key}_mean") for key in ("student_kwh", "method_kwh", "cross_entropy")]
                energies = [number(value, None, by) for value, by in zip(figures, (1e3, 1e3, 1.0), strict=True)]
                more = [number(said.saved, None, 100.0), number(said.reuses, None, 1.0), said.kind] if said else ["", "", ""]
                rows.append([student, name, *energies, *more])
    head = ["student", "run", "training [Wh]", "method [Wh]", "held-out CE", "saved [%]", "N\\*", "verdict"]
    return pipe(rows, head, (0, 1, len(head) - 1))


def whole(comparison: Comparison) -> str:
    """Sentences and tables of the study's page."""
    return render(comparison, "comparison.md").partition("\n\n")[2].replace("\n## ", "\n### ")


def extract(comparison: Comparison) -> str:
    """The front page's table, a row for each method."""
    kinds = {row.experiment: row.kind for row in comparison.answers}
    columns = [(f"{name}_kwh", 1000.0) for name in ("teacher", "student", "lineage", "method")]
    columns += [("cross_entropy", 1.0)]
    rows = []
    for row in comparison.groups:
        figures = [number(row.column(f"{key}_mean"), row.column(f"{key}_sd"), by) for key, by in columns]
        rows.append([row.group, *figures, kinds.get(row.group, "")])
    head = ["method", "teacher [Wh]", "training [Wh]", "policy [Wh]", "method [Wh]", "held-out CE"]
    head += [f"against {comparison.baseline}"]
    return pipe(rows, head, (0, len(head) - 1))


def main(arguments: list[str] | None = None) -> int:
    """Write data, figures and both pages."""
    parser = argparse.ArgumentParser(prog="benchmarks.study", allow_abbrev=False)
    parser.add_argument("results", type=Path)
    parser.add_argument("--students", action="store_true")
    options = parser.parse_args(arguments)
    results: Path = options.results
    comparison = Comparison.model_validate(read_json(results / "comparison" / "comparison.json"))
    if options.students:
        write_json(DATA / "students.json", [comparison.content()])
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), of_students([comparison]), OF_STUDENTS), encoding="utf-8")
        return 0
    summaries = load([results / row.experiment / "experiment_summary.json" for row in comparison.experiments]).summaries
    arms = arms_of(group(summaries), Axis(comparison.quality, 1.0)).values()
    DATA.mkdir(exist_ok=True)
    table = pd.DataFrame((line for arm in arms for line in observations(arm)), columns=COLUMNS)
    table.astype({"seed": "Int64", "number": "Int64"}).to_csv(DATA / "runs.csv", index=False)
    shutil.copy(results / "comparison" / "comparison.json", DATA)
    for name in FIGURES:
        shutil.copy(results / "comparison" / f"{name}.svg", DATA)
    for path, content in ((PAGE, whole(comparison)), (FRONT, extract(comparison))):
        path.write_text(page(path.read_text(encoding="utf-8"), content), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
