"""The one set of sentences of a comparison: the page, the tables' captions and the terminal say the same."""

from __future__ import annotations

from workflow_scripts.accounting.rows import Advantage, Answer, Comparison, Refusal
from workflow_scripts.report.rounding import rounded
from workflow_scripts.settings.evaluation import FOLLOWED

QUESTION = (
    "Which way of distilling costs how many joules for a model of a certain quality, and from how many reuses does it pay?"
)
QUALITIES = {"cross_entropy": "cross entropy", "kl_to_teacher": "KL to the teacher", "top1_agreement": "top-1 agreement"}
REFUSED = {
    "energy": "{value}",
    "boundary": "{value}",
    "evaluation split": "their evaluation splits differ ({value})",
    "starting model": "{experiment} starts from {value}, another model, and what making that cost is on no bill",
    "hardware": "their trainings ran on different hardware ({value})",
    "meter": "the energy of their trainings was obtained differently ({value}): repeat one of them",
    "uncertainty": "the uncertainty of stage {stage} of {experiment} is not known",
    "cpu share": "stage {stage} of {experiment} had {value} of its host's CPU time: repeat it alone",
    "another meter": "another metered stage ran beside stage {stage} of {experiment}: repeat it alone",
    "gpu processes": "{value} foreign processes were on the GPU of stage {stage} of {experiment}: repeat it alone",
}
CAUSES = {  # why nothing is said, and what would settle it
    "one run": ("there is one run of {fewest}", "{seeds}."),
    "no curve": (
        "without intermediate evaluations its energy to an equal quality is not known",
        "Set training.eval_steps or training.eval_joules.",
    ),
    "own loss": (
        "the evaluations in its training are of its own loss, so that its energy to an equal quality is not known",
        "Compare final qualities and whole energies; a training of another length is another experiment.",
    ),
    "no overlap": (
        "one of the two reaches before its first evaluation what the other never reaches",
        "Evaluate earlier (training.eval_steps, training.eval_joules), or train the weaker one longer.",
    ),
    "one policy": (
        "its runs start from one training of the policy, so that they count as one run",
        "Give the policy's experiment the same seeds (experiment.seeds).",
    ),
    "target passed": (
        "a run is past {target} at its first evaluation",
        "Evaluate earlier (training.eval_steps, training.eval_joules), or ask for more (comparison.target_quality).",
    ),
    "target not reached": ("not every run reaches {target}", "Train longer, or ask for less (comparison.target_quality)."),
    "interval": ("the runs differ too much", "{seeds}."),
    "together": ("it is sure by itself, but not at 95 % for all methods together", "{seeds}."),
    "models disagree": (
        "another energy model, or a meter at the end of its uncertainty, says otherwise",
        "Measure (RAPL, NVML, a node's meter) instead of modelling.",
    ),
    "rows": ("the held-out rows are too few to tell the curves apart", "Use more rows (data.evaluation_examples)."),
    "energy": ("an energy or a quality is not known", "Repeat the stage that the warnings name."),
    "no teacher": ("it has no teacher whose output could be reused", ""),
}


def sentences(made: Comparison) -> list[tuple[str, str]]:
    """For every method what is said of it, and what would settle what is not."""
    said = [(_sentence(row, made), _remedy(row)) for row in made.answers]
    followed = [row for row in made.qualities if row.quality == FOLLOWED and row.better is not None]
    golds = dict.fromkeys(row.baseline for row in followed)
    return said + [(_second(gold, [row for row in followed if row.baseline == gold]), "") for gold in golds]


def _second(gold: str, rows: list[Advantage]) -> str:
    """The quality that no method trains on, beside the verdicts' own."""
    parts = []
    for row in rows:
        better = row.experiment if (row.better or 0) > 0 else gold
        told = f"{better} follows more" if row.clear else "not told apart"
        difference = _span(row.better, row.better_low, row.better_high, percent=True)
        parts.append(f"{row.experiment} {100 * (row.final or 0):.3g} % (difference {difference}, {told})")
    share = f"{gold} follows {100 * (rows[0].baseline_final or 0):.3g} % of the checkable instructions"
    return f"On what no method trains on, {share}: {'; '.join(parts)}."


def refusal(found: Refusal) -> str:
    """Why something is not compared."""
    return REFUSED[found.what].format(**found.model_dump())


def _sentence(row: Answer, made: Comparison) -> str:
    name, gold, quality = row.experiment, row.baseline, QUALITIES.get(made.quality, made.quality)
    if row.kind == "not comparable":
        more = len({refusal(found) for found in row.refusals}) - 1
        return f"{name} is not compared with {gold}: {refusal(row.refusals[0])}{f' (and {more} more)' if more else ''}."
    said = []
    ends = f"it ends at {_figure(row.final)}, {gold} at {_figure(row.baseline_final)}"
    spread = f"{ends}; difference {_span(row.better, row.better_low, row.better_high)}"
    if row.kind == "only way":
        said.append(f"{name} reaches a {quality} of {_figure(row.final)} within its budget, {gold} does not: {spread}.")
    elif row.kind == "not reached":
        said.append(f"{name} does not reach the {quality} of {gold} within its budget: {spread}.")
    at = f"at a {quality} of {_figure(row.target)}"
    if row.at_equal == "pays":
        reuses = _span(row.reuses, row.reuses_low, row.reuses_high)
        first = row.reuses_high is not None and row.reuses_high <= 1
        start = (
            f"the first use of its teacher's output (N* = {reuses})" if first else f"{reuses} reuses of its teacher's output"
        )
        said.append(f"{name} pays from {start}, {at}.")
    elif row.at_equal == "never":
        saving = _span(row.saved, row.saved_low, row.saved_high, percent=True)
        said.append(f"{name} never pays {at}: its training saves {saving} of {gold}'s energy.")
    elif row.kind == "undetermined":
        why = _why(row)
        said.append(f"{name}: undetermined. {why[0].upper()}{why[1:]}.")
    return " ".join(said)


def _why(row: Answer) -> str:
    fewest = " and ".join(n for n, runs in ((row.experiment, row.runs), (row.baseline, row.baseline_runs)) if runs < 2)
    why = CAUSES[row.cause or "energy"][0].format(fewest=fewest, target=_figure(row.target))
    if row.saved is not None:
        why += f"; the difference to an equal quality is {_span(row.saved, row.saved_low, row.saved_high, percent=True)}"
    elif row.equal_tokens_saved is not None:
        why += f"; the difference at equal tokens is {rounded(100 * row.equal_tokens_saved, 2)} %"
    if row.cause in ("no teacher", "energy"):
        return why
    if row.repeatability is None:
        return f"{why}; nothing here was done twice"
    return f"{why}; equal work here repeats to {rounded(100 * row.repeatability, 2)} %"


def _remedy(row: Answer) -> str:
    if row.kind == "not comparable":
        return ""
    alone = min(row.runs, row.baseline_runs) < 2
    seeds = "Not even 100 seeds of each would tell so small a difference"
    if row.seeds_needed:
        seeds = f"{'At least' if alone else 'About'} {row.seeds_needed} seeds of each would tell such a difference"
        seeds += ", more if seeds differ more than repeated work" if alone else ""
    elif row.runs < 3 or row.repeatability is None:
        seeds = "Three seeds of each would be a beginning"
    one = " With one run of a method nothing is definite: repeat with other seeds." if alone else ""
    told = CAUSES[row.cause][1].format(seeds=seeds) if row.kind == "undetermined" and row.cause else ""
    worse = " Its quality got worse towards the end: the best evaluation counts." if row.worsened else ""
    if not row.work_apart and row.saved is not None:
        worse += " Start-up and saves are in its joules to a quality: not all compared records tell them apart."
    return (
        f"{row.experiment}: {told}{one if row.cause not in ('one run', 'one policy') else ''}{worse}" if told or worse else ""
    )


def _figure(value: float | None) -> str:
    return "an unknown value" if value is None else rounded(value, 4)


def _span(value: float | None, low: float | None, high: float | None, percent: bool = False) -> str:
    """A value with its 95 % interval; no more digits than tell its bounds apart."""
    if value is None:
        return "an unknown number"
    factor, unit = (100, " %") if percent else (1, "")
    first, least, most = (
        "never" if figure is None else f"{rounded(factor * figure, 2)}{unit}" for figure in (value, low, high)
    )
    return f"{first} (no interval)" if low is None else f"{first} (95 %: {least} to {most})"
