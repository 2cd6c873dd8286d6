"""Batched text generation in which a prompt's answer does not depend on its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from workflow_scripts.distill.batching import by_length, in_batches
from workflow_scripts.errors import UserError
from workflow_scripts.settings.schema import Generation

Row = TypeVar("Row")
READ = 8  # prompts, neighbours in length, that are read at once: a batch's shortest is not padded to its longest
SPAN = 16  # tokens after which answers that have ended leave their batch, but for models with recurrent states


class GenerationError(UserError):
    """Generation that cannot be done as configured."""


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer: any hashable key, its tokens, and the seed of its random numbers."""

    key: Any
    input_ids: list[int]
    seed: int


@dataclass(frozen=True)
class Answer:
    """Generated tokens without the end token, and that token (None: truncated, none came)."""

    key: Any
    token_ids: list[int]
    end: int | None

    @property
    def truncated(self) -> bool:
        """Whether no end token came."""
        return self.end is None

    @property
    def completion(self) -> list[int]:
        """All generated tokens, the end token among them."""
        return self.token_ids + ([] if self.end is None else [self.end])

    @property
    def generated(self) -> int:
        """How many these are."""
        return len(self.completion)


class SeededSampling(LogitsProcessor):
    """Temperature and nucleus sampling (Holtzman et al. 2020) with one uniform number per row and step.

    The token is found by inverting the cumulative distribution at the row's own random number, so a row's sample depends on
    its seed, not on its neighbours. The chosen token is left as the only finite score.
    """

    _CANDIDATES = 1024

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature, self._top_p = temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] in, the sampled token of each row as the only finite score out."""
        uniform = torch.stack([torch.rand((), generator=g) for g in self._generators]).to(scores.device)[:, None]
        probabilities = torch.softmax(scores.float() / self._temperature, dim=-1)
        if self._top_p >= 1:
            token = _invert(probabilities, uniform)
        else:
            values, tokens = self._nucleus(probabilities)
            token = tokens.gather(1, _invert(values, uniform))
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only."""
        self._generators = [self._generators[row] for row in rows]

    def _nucleus(self, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Descending probabilities, zero outside the nucleus, and their tokens.

        The most likely candidates are enough unless some row's nucleus is larger; then all are sorted.
        """
        count = min(self._CANDIDATES, probabilities.shape[-1])
        values, tokens = torch.topk(probabilities, count, dim=-1)
        if count < probabilities.shape[-1] and bool((values.sum(-1) < self._top_p).any()):
            values, tokens = torch.sort(probabilities, dim=-1, descending=True)
        before = values.cumsum(-1) - values
        return values.masked_fill(before >= self._top_p, 0.0), tokens


class _Roomy(DynamicLayer):
    """A layer's keys and values [B, H, L, D] with room for SPAN tokens more; the plain one copies all of them at each token."""

    keys: torch.Tensor
    values: torch.Tensor
    _rooms: list[torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Add the keys and values of new tokens; those of all tokens come back."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        known = self.get_seq_length()
        now, added, rooms = known + key_states.shape[-2], (key_states, value_states), self._rooms
        if rooms is None or now > rooms[0].shape[-2]:
            rooms = [new.new_empty(*new.shape[:-2], now + SPAN, new.shape[-1]) for new in added]
            for room, old in zip(rooms, (self.keys, self.values) if known else (), strict=False):
                room[..., :known, :] = old
        for room, new in zip(rooms, added, strict=True):
            room[..., known:now, :] = new
        self._rooms = rooms
        self.keys, self.values = (room[..., :now, :] for room in rooms)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows."""
        super().reorder_cache(beam_idx)
        self._rooms = None


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Index [B, 1] at which the cumulative weights [B, n] first exceed `uniform` [B, 1] of their total."""
    cumulative = weights.double().cumsum(-1)
    index = torch.searchsorted(cumulative, uniform.double() * cumulative[:, -1:], right=True)
    return index.clamp(max=weights.shape[-1] - 1)


def prompt_tokens(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Tokens of a conversation that the assistant is to answer."""
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    ids: list[int] = encoded["input_ids"]
    return ids


def ends_of_turns(model: dict[str, Any], corpus: dict[str, Any]) -> list[int]:
    """Tokens that stop generation: those that the model of these manifest facts states, and that of the chat template."""
    return sorted({*model["end_token_ids"], corpus["end_token_id"]})


def that_fit(
    rows: Sequence[Row], prompt_length: Callable[[Row], int], max_new_tokens: int, teacher: dict[str, Any]
) -> list[Row]:
    """Rows whose prompt and longest answer fit the context of the model of these manifest facts; the rest is said.

    Raises GenerationError when none fits.
    """
    context = teacher["max_position_embeddings"]
    kept = [row for row in rows if prompt_length(row) + max_new_tokens <= context]
    what = f"with max_new_tokens = {max_new_tokens} the context of {teacher['name']} ({context} tokens)"
    if rows and not kept:
        shortest = min(prompt_length(row) for row in rows)
        raise GenerationError(f"no prompt fits {what}, the shortest has {shortest} tokens: lower generation.max_new_tokens")
    if len(kept) < len(rows):
        print(f"{len(rows) - len(kept)} of {len(rows)} prompts do not fit {what}: they are left out")
    return kept


def generate(
    model: Any, prompts: Sequence[Prompt], options: Generation, eos_ids: Sequence[int], pad_id: int
) -> Iterator[list[Answer]]:
    """Answer prompts in batches of similar length, yielding each batch's answers.

    When memory runs out the batch is halved, which is said; one prompt that does not fit alone raises.
    """
    batches = by_length(prompts, options.batch_size, lambda prompt: len(prompt.input_ids))
    for _, answers in in_batches(batches, lambda batch: _generate_batch(model, batch, options, eos_ids, pad_id)):
        yield answers


@torch.no_grad()
def _generate_batch(
    model: Any, batch: Sequence[Prompt], options: Generation, eos_ids: Sequence[int], pad_id: int
) -> list[Answer]:
    device = next(model.parameters()).device
    longest = max(len(prompt.input_ids) for prompt in batch)
    ids = torch.full((len(batch), longest), pad_id)
    attention = torch.zeros_like(ids)
    for row, prompt in enumerate(batch):
        ids[row, longest - len(prompt.input_ids) :] = torch.tensor(prompt.input_ids)
        attention[row, longest - len(prompt.input_ids) :] = 1
    ids, attention = ids.to(device), attention.to(device)
    sampling = options.decoding_strategy == "sampling"
    sampler = SeededSampling([prompt.seed for prompt in batch], options.temperature, options.top_p)
    model.generation_config = GenerationConfig()  # unset fields are filled from it: no penalty of the model's own may leak in
    cache = DynamicCache(config=model.config) if model._supports_default_dynamic_cache() else None
    shrinks = cache is not None and not any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)
    span = SPAN if shrinks else options.max_new_tokens
    if cache is not None and all(type(layer) is DynamicLayer for layer in cache.layers):
        cache.layers = [_Roomy() for _ in cache.layers]
        if len(batch) > READ and min(len(prompt.input_ids) for prompt in batch) < longest:
            _read(model, ids, attention, cache)
    going = list(range(len(batch)))
    written: list[list[int]] = [[] for _ in batch]
    for begin in range(0, options.max_new_tokens, span):
        count, known = min(span, options.max_new_tokens - begin), ids.shape[1]
        config = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=list(eos_ids), pad_token_id=pad_id)
        ids = model.generate(
            input_ids=ids,
            attention_mask=attention,
            past_key_values=cache,
            generation_config=config,
            logits_processor=LogitsProcessorList([sampler] if sampling else []),
        )
        new = ids[:, known:]
        for row, tokens in zip(going, new.tolist(), strict=True):
            written[row] += tokens
        kept = [row for row, tokens in enumerate(new.tolist()) if not set(tokens) & set(eos_ids)]
        if not kept or begin + span >= options.max_new_tokens:
            break
        attention = torch.cat([attention, torch.ones_like(new)], dim=1)
        if cache is not None and len(kept) < len(going):
            chosen = torch.tensor(kept, device=device)
            ids, attention, going = ids[chosen], attention[chosen], [going[row] for row in kept]
            cache.reorder_cache(chosen)
            sampler.keep(kept)
    return [_cut(prompt.key, tokens, eos_ids) for prompt, tokens in zip(batch, written, strict=True)]


def _read(model: Any, ids: torch.Tensor, attention: torch.Tensor, cache: DynamicCache) -> None:
    """Fill an empty cache with all tokens but the last of left-padded prompts [B, L].

    A few rows are read at a time, without the padding that they share.
    """
    config = GenerationConfig(max_new_tokens=1, do_sample=False)
    parts = []
    for begin in range(0, len(ids), READ):
        rows = slice(begin, begin + READ)
        padding = ids.shape[1] - max(2, int(attention[rows].sum(dim=1).max()))
        part = DynamicCache(config=model.config)
        model.generate(
            input_ids=ids[rows, padding:-1],
            attention_mask=attention[rows, padding:-1],
            past_key_values=part,
            generation_config=config,
        )
        parts.append((padding, part))
    for index in range(len(cache.layers)):
        layers = [(padding, part.layers[index]) for padding, part in parts if part.layers[index].is_initialized]
        if layers:  # else it uses those of another
            cache.update(
                torch.cat([torch.nn.functional.pad(layer.keys, (0, 0, padding, 0)) for padding, layer in layers]),
                torch.cat([torch.nn.functional.pad(layer.values, (0, 0, padding, 0)) for padding, layer in layers]),
                index,
            )
        for _, layer in layers:
            layer.reset()


def _cut(key: Any, tokens: list[int], eos_ids: Sequence[int]) -> Answer:
    """Cut a row of the batch at its first end token; what follows is padding and was not generated."""
    end = next((index for index, token in enumerate(tokens) if token in eos_ids), None)
    if end is None:
        return Answer(key, tokens, None)
    return Answer(key, tokens[:end], tokens[end])
