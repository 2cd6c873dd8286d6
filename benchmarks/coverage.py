"""Do the intervals of the comparison hold what they claim? Campaigns of known truth, drawn and judged.

python -m benchmarks.coverage [--write]      prints the tables of docs/verdicts.md, or renews them there
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate

from workflow_scripts.accounting.intervals import break_even
from workflow_scripts.accounting.verdicts import Arm, Run, Verdict, judge

PAGE = Path(__file__).parents[1] / "docs" / "verdicts.md"
MARKS = ("<!-- coverage -->\n", "<!-- end of coverage -->\n")
SAVINGS, NOISES, SEEDS = (0.0, 0.1, 0.3, 0.7), (0.03, 0.05, 0.10, 0.15), (3, 5, 10)
BASELINE_J, TEACHER_J = 1000.0, 600.0


@dataclass(frozen=True)
class Assumption:
    """How a campaign is drawn: noise of baseline, method and teacher as multiples of the cell's, teacher once or replicated."""

    name: str
    baseline: float = 1.0
    method: float = 1.0
    teacher: float = 1.0
    once: bool = True


ASSUMED = (Assumption("teacher made once"), Assumption("teacher replicated", once=False))
BROKEN = (
    Assumption("teacher once, its noise 3 x", teacher=3.0),
    Assumption("teacher replicated, its noise 3 x", teacher=3.0, once=False),
    Assumption("method's noise 3 x", method=3.0),
    Assumption("method's noise 3 x, teacher replicated", method=3.0, once=False),
)


def coverage(assumed: Assumption, saving: float, noise: float, seeds: int, campaigns: int = 10_000) -> float:
    """Share of campaigns in which the 95 % interval of 1 / N* holds its true value."""
    generator = np.random.default_rng([seeds, round(1000 * noise), round(10 * saving), assumed.once])

    def drawn(joules: float, spread: float, runs: int) -> np.ndarray:
        return joules * (1 + noise * spread * generator.standard_normal((campaigns, runs)))

    method = BASELINE_J * (1 - saving)
    low, high = break_even(
        drawn(TEACHER_J, assumed.teacher, 1 if assumed.once else seeds),
        drawn(BASELINE_J, assumed.baseline, seeds),
        drawn(method, assumed.method, seeds),
        0.025,
    )
    truth = (BASELINE_J - method) / TEACHER_J
    return float(np.mean((low <= truth) & (truth <= high)))


def cells(assumed: Assumption) -> Iterator[tuple[float, float, int, float]]:
    """Saving, noise, seeds and coverage of every cell."""
    for saving, noise, seeds in itertools.product(SAVINGS, NOISES, SEEDS):
        yield saving, noise, seeds, coverage(assumed, saving, noise, seeds)


@dataclass(frozen=True)
class Truth:
    """A method without noise: loss(J) = floor + drop (J / 1000)^-slope until `budget` [J], and its teacher [J]."""

    floor: float
    factor: float  # joules by the baseline's at equal loss above the floor
    budget: float
    teacher: float

    def loss(self, joules: np.ndarray) -> np.ndarray:
        return self.floor + 2.0 * (joules / self.factor / 1000) ** -0.5

    def joules(self, loss: float) -> float:
        """Energy to a loss; infinite where it is not reached."""
        if loss <= self.floor:
            return np.inf
        found = 1000 * self.factor * (2.0 / (loss - self.floor)) ** 2
        return found if found <= self.budget else np.inf


@dataclass(frozen=True)
class Noise:
    """Relative noise of a run's joules; of its loss, shift by the seed, jitter of an evaluation, what a row is to a method."""

    energy: float
    seed: float
    evaluation: float
    rows: float


def run_arm(name: str, truth: Truth, noise: Noise, seeds: int, rows: np.ndarray, generator: np.random.Generator) -> Arm:
    """Runs of a method: 12 evaluations each; `rows` [R] is how much harder each held-out row is than the mean."""
    runs = []
    rows = rows + noise.rows * generator.standard_normal(len(rows))  # what suits this method is the same with every seed
    for seed in range(seeds):
        true = np.linspace(truth.budget / 12, truth.budget, 12)
        joules = true * max(0.2, 1 + noise.energy * generator.standard_normal())
        shift = rows.mean() + noise.seed * generator.standard_normal()
        loss = truth.loss(true) + shift + noise.evaluation * generator.standard_normal(12)
        by_row = loss[-1] + rows - rows.mean()
        runs.append(Run(joules, loss, float(joules[-1]), seed, by_row, np.ones(len(rows))))
    made = truth.teacher * max(0.2, 1 + noise.energy * generator.standard_normal())
    return Arm(name, runs, [(made, {})] if truth.teacher else ())


@dataclass(frozen=True)
class Campaign:
    """A campaign with its truth and what was said of it."""

    baseline: Truth
    methods: dict[str, Truth]
    verdicts: dict[str, Verdict]

    def wrong(self, name: str) -> str | None:
        """What is wrong in the sentence on a method, or None."""
        truth, said = self.methods[name], self.verdicts[name]
        ends = [float(t.loss(np.array(t.budget))) for t in (self.baseline, truth)]
        if said.kind == "only way" and ends[1] >= ends[0]:
            return f"only way, but it ends at {ends[1]}, the baseline at {ends[0]}"
        if said.kind == "not reached" and ends[1] <= ends[0]:
            return f"not reached, but it ends at {ends[1]}, the baseline at {ends[0]}"
        if said.at_equal in ("pays", "never") and said.target is not None:
            theirs, own = self.baseline.joules(said.target), truth.joules(said.target)
            if not np.isfinite([theirs, own]).any():
                return None  # beyond the noise-free end of both: no truth to compare with
            saved = np.inf if np.isinf(theirs) else -np.inf if np.isinf(own) else theirs - own
            if (said.at_equal == "pays") != (saved > 0):
                return f"{said.at_equal}, but it saves {saved} J"
        return None


def campaign(
    generator: np.random.Generator, seeds: int | None = None, effects: tuple[float, ...] = (0.0, 0.05, 0.5)
) -> Campaign:
    """A random campaign: one to five seeds, one to four methods without an effect, with a small or a large one."""
    seeds = seeds or int(generator.integers(1, 6))
    effect = generator.choice(effects)
    rows = 0.5 * generator.standard_normal(int(generator.choice([6, 40, 200])))
    noise = Noise(*generator.choice([[0.03, 0.005, 0.002, 0.05], [0.10, 0.02, 0.01, 0.2], [0.2, 0.05, 0.0, 0.1]]))
    budget = generator.choice([1000.0, 0.0])  # equal ones, or any
    gold = Truth(2.5, 1.0, 1000.0, 0.0)
    methods = {}
    for number in range(int(generator.integers(1, 5))):
        sign = generator.choice([-1, 1], size=2)
        truth = Truth(2.5 + 0.3 * effect * sign[0], 1 + effect * sign[1], budget or 1000.0 * generator.uniform(0.8, 1.5), 400.0)
        methods[f"method{number}"] = truth
    baseline = run_arm("gold", gold, noise, seeds, rows, generator)
    arms = {name: run_arm(name, truth, noise, seeds, rows, generator) for name, truth in methods.items()}
    verdicts = {name: judge(arm, baseline, methods=len(arms)) for name, arm in arms.items()}
    return Campaign(gold, methods, verdicts)


def held(campaigns: int = 500) -> tuple[float, float]:
    """Share of the intervals of 1 / N*(q), and of those of the final qualities' difference, that hold the truth."""
    generator = np.random.default_rng(5)
    savings, qualities = [], []
    for made in (campaign(generator, int(generator.integers(3, 6))) for _ in range(campaigns)):
        for name, said in made.verdicts.items():
            truth, (_, least, most) = made.methods[name], said.reuses
            energies = [t.joules(said.target) if said.target is not None else np.inf for t in (made.baseline, truth)]
            if np.isfinite(energies).all() and said.cause != "rows":
                saved = (energies[0] - energies[1]) / truth.teacher
                low, high = (1 / bound if bound else end for bound, end in ((most, -np.inf), (least, np.inf)))
                savings.append(low <= saved <= high if least is not None else saved <= 0)
            if said.better[1] is not None and said.better[2] is not None:
                ends = [float(t.loss(np.array(t.budget))) for t in (made.baseline, truth)]
                qualities.append(said.better[1] <= ends[0] - ends[1] <= said.better[2])
    return float(np.mean(savings)), float(np.mean(qualities))


def main() -> int:
    """Print or renew the tables."""
    parser = argparse.ArgumentParser(prog="benchmarks.coverage", allow_abbrev=False)
    parser.add_argument("--write", action="store_true")
    text = "\n".join(_tables())
    if not parser.parse_args().write:
        print(text)
        return 0
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    PAGE.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}", encoding="utf-8")
    return 0


def _tables() -> Iterator[str]:
    head = ["saving", "noise", *(f"{seeds} seeds" for seeds in SEEDS)]
    for assumed in (*ASSUMED, *BROKEN):
        found = {(saving, noise, seeds): share for saving, noise, seeds, share in cells(assumed)}
        rows = [
            [f"{saving:.0%}", f"{noise:.0%}", *(f"{100 * found[saving, noise, seeds]:.1f}" for seeds in SEEDS)]
            for saving, noise in itertools.product(SAVINGS, NOISES)
        ]
        yield f"**{assumed.name[0].upper()}{assumed.name[1:]}**\n\n{tabulate(rows, head, 'github', disable_numparse=True)}\n"


if __name__ == "__main__":
    raise SystemExit(main())
