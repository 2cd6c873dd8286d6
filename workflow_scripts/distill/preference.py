"""Preference pairs: rank samples of one prompt by the teacher's log-likelihood or judgement, keep the best and the worst."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields

from workflow_scripts.settings.dpo import ScoringMethod


@dataclass(frozen=True)
class Sample:
    """One sampled answer: text, tokens, whether it ended by itself, seed, log-likelihood under the teacher [nats].

    `wins` is the number of samples of its prompt that a judge prefers it to; None where none was asked.
    """

    text: str
    token_ids: list[int]
    truncated: bool
    seed: int
    log_likelihood: float
    wins: int | None = None


FIELDS = tuple(entry.name for entry in fields(Sample))


def score(sample: Sample, method: ScoringMethod) -> float:
    """Log-likelihood of the answer, per token (`likelihood_mean`) or summed (`likelihood`), or its wins (`judge`)."""
    if method == "judge":
        assert sample.wins is not None
        return float(sample.wins)
    return sample.log_likelihood / len(sample.token_ids) if method == "likelihood_mean" else sample.log_likelihood


def rank(
    samples: list[Sample],
    method: ScoringMethod,
    min_margin: float,
    keep_truncated: bool,
    rejected: Counter[str],
) -> tuple[Sample, Sample] | None:
    """Best and worst of the samples of one prompt, or None with the reason counted in `rejected`."""
    written = [s for s in samples if s.text.strip()]
    if len(written) < 2:
        rejected["empty"] += 1
        return None
    usable = [s for s in written if keep_truncated or not s.truncated]
    if len(usable) < 2:
        rejected["truncated"] += 1
        return None
    ordered = sorted(usable, key=lambda s: score(s, method), reverse=True)
    best, worst = ordered[0], ordered[-1]
    if best.text == worst.text:
        rejected["equal_texts"] += 1
        return None
    if method == "judge" and score(best, method) == score(worst, method):
        rejected["tie"] += 1
        return None
    if score(best, method) - score(worst, method) < min_margin:
        rejected["margin"] += 1
        return None
    return best, worst
