"""logit_caching, merge_logits and the start of a KD training on a toy teacher: parts, lack of memory, what is refused when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.partial import partial
from workflow_scripts import artefact
from workflow_scripts.artefact import LOGIT_FORMATS, ArtefactError, open_artefact, read_json, write_json
from workflow_scripts.distill import corpus, logit_cache, models
from workflow_scripts.distill.logit_cache import CacheError
from workflow_scripts.distill.models import ModelError
from workflow_scripts.settings import Settings
from workflow_scripts.stages import logit_caching as stage
from workflow_scripts.stages import student_train
from workflow_scripts.stages.merge_logits import merge_logits
from workflow_scripts.stages.runtime.common import Arguments

CONTENT = {
    "top_k": {"sampling": "top_k", "top_k_logits": 8},
    "random": {"sampling": "random", "sampling_draws": 50, "sampling_seed": 1},
}
ROWS = [
    {
        "example_id": 7 * i + 1,
        "messages": [{"role": "user", "content": "q"}],
        "input_ids": [3 + (i * 11 + j) % 90 for j in range(6 + i % 4)],
        "loss_mask": [0, 0] + [1] * (4 + i % 4),
        "truncated": False,
    }
    for i in range(11)
]


class Toy:
    """A teacher, a corpus and a state folder on disk."""

    def __init__(self, folder: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setenv("STAGE_UNITS_DIR", str(folder / "units"))
        monkeypatch.setenv("STAGE_STATE_DIR", str(folder / "state"))
        monkeypatch.setattr(stage, "load_frozen", lambda *_: self.loaded())
        monkeypatch.setattr(stage, "load_tokenizer", lambda *_: type("Tokenizer", (), {"pad_token_id": 0}))
        self.model, self.loads = model, 0
        facts = {
            "name": "toy",
            "vocab_size": 97,
            "tokens": 97,
            "max_position_embeddings": 128,
            "tokenizer_sha256": "t" * 64,
            "weights_sha256": "w" * 64,
        }
        (folder / "model").mkdir()
        artefact.point_to(folder / "model", folder / "teacher.json", "model", facts)
        build = folder / ".corpus.build"
        build.mkdir()
        corpus.write_table(build / "train.parquet", ROWS)
        splits = {"train": {"loss_tokens": sum(corpus.loss_tokens(row) for row in ROWS)}}
        identity = {"corpus_sha256": "c" * 64, "tokenizer_sha256": "t" * 64, "splits": splits}
        artefact.publish(build, folder / "corpus" / "manifest.json", "corpus", identity)

    def loaded(self) -> Any:
        self.loads += 1
        return self.model

    def settings(self, sampling: str) -> Settings:
        options = {"cache_temperatures": [1.0, 2.0], "shard_examples": 4, "batch_size": 3, "logprob_cache_path": None}
        return partial(
            distillation=CONTENT[sampling] | options,
            teacher={"dtype": "float32"},
            model={"attn_implementation": "sdpa"},
        )

    def cache(self, sampling: str = "top_k", parts: int = 1) -> Path:
        """Manifest of a cache made in some parts."""
        inputs = {"teacher": self.folder / "teacher.json", "corpus": self.folder / "corpus" / "manifest.json"}
        made = []
        for number in range(1, parts + 1):
            made.append(self.folder / "parts" / f"{number}.json")
            stage.logit_caching(Arguments(self.settings(sampling), inputs, made[-1], {"part": f"{number}-of-{parts}"}))
        out = self.folder / "teacher" / "logit_cache" / "manifest.json"
        merge_logits(Arguments(self.settings(sampling), inputs, out, {}, made))
        return out

    def question(self, cache: Path, sampling: str = "top_k", **changes: Any) -> Arguments:
        """Arguments of a KD training on the cache."""
        content = changes.get("content", CONTENT[sampling])
        slice_ = partial(distillation=content | {"alpha": 0.5, "temperature": changes.get("temperature", 2.0)})
        inputs = {"teacher_output": cache, "teacher": changes.get("teacher", self.folder / "teacher.json")}
        return Arguments(slice_, inputs, self.folder / "out.json", {})

    def training_data(self, cache: Path, sampling: str = "top_k", **changes: Any) -> Any:
        folder, facts = open_artefact(self.folder / "corpus" / "manifest.json", "corpus")
        facts = facts | changes.get("corpus", {})
        return student_train.training_data(self.question(cache, sampling, **changes), folder, facts)


@pytest.fixture
def toy(tmp_path: Path, toy_model: Any, monkeypatch: pytest.MonkeyPatch) -> Toy:
    return Toy(tmp_path, toy_model, monkeypatch)


@pytest.mark.parametrize("sampling", ["top_k", "random"])
def test_any_number_of_parts_and_a_halved_batch_give_the_same_cache(
    tmp_path: Path, toy_model: Any, monkeypatch: pytest.MonkeyPatch, sampling: str, capsys: Any
) -> None:
    def made(name: str, parts: int) -> dict[str, Any]:
        (tmp_path / name).mkdir()
        return read_json(Toy(tmp_path / name, toy_model, monkeypatch).cache(sampling, parts))

    one = made("one", 1)
    assert one["format"] == LOGIT_FORMATS[sampling] and one["temperatures"] == [1.0, 2.0]
    assert one == made("three", 3)
    real = {name: getattr(logit_cache, name) for name in ("teacher_rows", "drawn_rows")}

    def limited(name: str) -> Any:
        def forward(model: Any, batch: list[Any], *rest: Any) -> Any:
            if len(batch) > 2:
                raise torch.OutOfMemoryError("too big")
            return real[name](model, batch, *rest)

        return forward

    for name in real:
        monkeypatch.setattr(logit_cache, name, limited(name))
    capsys.readouterr()
    halved = made("halved", 1)
    assert "out of memory with 3 rows per batch: going on with 1" in capsys.readouterr().out
    assert [shard["positions"] for shard in halved["shards"]] == [shard["positions"] for shard in one["shards"]]
    rows, cache = Toy.training_data(_reopened(tmp_path / "halved"), *_cache(tmp_path / "halved", sampling))
    _, whole = Toy.training_data(_reopened(tmp_path / "one"), *_cache(tmp_path / "one", sampling))
    for row in rows:
        a, b = (c.teacher(row["example_id"], 2.0, corpus.loss_tokens(row)) for c in (cache, whole))
        if sampling == "random":
            assert torch.equal(a.ids, b.ids) and torch.equal(a.logits, b.logits), "draws belong to the example"
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-5, atol=1e-5)


def _reopened(folder: Path) -> Toy:
    toy = Toy.__new__(Toy)
    toy.folder = folder
    return toy


def _cache(folder: Path, sampling: str) -> tuple[Path, str]:
    return folder / "teacher" / "logit_cache" / "manifest.json", sampling


@pytest.mark.parametrize("sampling", ["top_k", "random"])
def test_a_cache_that_was_made_from_something_else_is_refused_before_the_training(toy: Toy, sampling: str) -> None:
    cache = toy.cache(sampling)
    rows, found = toy.training_data(cache, sampling)
    assert [row["example_id"] for row in rows] == [row["example_id"] for row in ROWS] and found is not None
    other = toy.folder / "other.json"
    write_json(other, read_json(toy.folder / "teacher.json") | {"weights_sha256": "x" * 64})
    with pytest.raises(CacheError, match="made with teacher_weights_sha256 = wwwwwwwwwwww, asked for xxxxxxxxxxxx: rebuild"):
        toy.training_data(cache, sampling, teacher=other)
    for fact, letter in (("corpus_sha256", "c"), ("tokenizer_sha256", "t")):
        with pytest.raises(CacheError, match=f"made with {fact} = {letter * 12}, asked for xxxxxxxxxxxx: rebuild the cache"):
            toy.training_data(cache, sampling, corpus={fact: "x" * 64})
    with pytest.raises(CacheError, match=r"distillation.temperature = 4.0, but the cache at .* was made for \[1.0, 2.0\]"):
        toy.training_data(cache, sampling, temperature=4.0)
    if sampling == "top_k":
        wrong = [
            ("k = 8, asked for 16", {"sampling": "top_k", "top_k_logits": 16}),
            ("format = top_k/2", CONTENT["random"]),
        ]
    else:
        wrong = [
            ("draws = 50, asked for 51", CONTENT["random"] | {"sampling_draws": 51}),
            ("seed = 1, asked for 2", CONTENT["random"] | {"sampling_seed": 2}),
            ("format = random/1", CONTENT["top_k"]),
        ]
    for message, content in wrong:
        with pytest.raises(CacheError, match=f"made with {message}"):
            toy.training_data(cache, sampling, content=content)


@pytest.mark.parametrize("sampling", ["top_k", "random"])
def test_a_damaged_shard_and_a_wrong_position_count_are_refused(toy: Toy, sampling: str) -> None:
    cache = toy.cache(sampling)
    _, found = toy.training_data(cache, sampling)
    with pytest.raises(CacheError, match="example 8 has 5 cached positions, but 6 loss tokens"):
        found.teacher(8, 1.0, 6)
    shard = cache.parent / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CacheError, match="shard-00001.safetensors has a wrong checksum"):
        toy.training_data(cache, sampling)
    shard.unlink()
    with pytest.raises(ArtefactError, match="shard-00001.safetensors is missing or damaged"):
        toy.training_data(cache, sampling)


def test_a_row_longer_than_the_teachers_context_is_refused_before_the_teacher_is_loaded(toy: Toy) -> None:
    manifest = toy.folder / "teacher.json"
    write_json(manifest, read_json(manifest) | {"max_position_embeddings": 8})
    with pytest.raises(
        ModelError, match="longest row needs 9 tokens, but the context of toy is 8: lower data.max_sequence_length"
    ):
        toy.cache()
    assert toy.loads == 0


def test_more_logits_than_tokens_are_refused_before_the_teacher_is_loaded(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONTENT, "top_k", {"sampling": "top_k", "top_k_logits": 98})
    with pytest.raises(CacheError, match="distillation.top_k_logits = 98, but the vocabulary has 97 tokens"):
        toy.cache()
    assert toy.loads == 0


def test_check_context_takes_what_fits() -> None:
    models.check_context({"name": "toy", "max_position_embeddings": 8}, 8, "a row", "the length")
