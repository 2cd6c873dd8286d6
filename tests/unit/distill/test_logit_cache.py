"""The cache against a live forward, and what it refuses."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Qwen3Config

from workflow_scripts.artefact import ArtefactError, open_artefact, publish
from workflow_scripts.distill import logit_cache
from workflow_scripts.distill.logit_cache import CacheError, LogitCache
from workflow_scripts.distill.losses import KdLoss
from workflow_scripts.distill.training import Collator, _distillation_forward

ROWS = [
    {"example_id": 10 * i, "input_ids": [3 + (i * 5 + j) % 90 for j in range(4 + i)], "loss_mask": [0, 0] + [1] * (2 + i)}
    for i in range(5)
]

MADE_FROM = {"corpus_sha256": "c" * 64, "tokenizer_sha256": "t" * 64, "teacher_weights_sha256": "w" * 64}


def make(tmp_path, model, k: int = 8, temperatures=(1.0, 2.0), vocab_size: int = 97):
    """A cache of ROWS in two shards."""
    build = tmp_path / "build"
    build.mkdir()
    for number, part in enumerate((ROWS[:3], ROWS[3:])):
        shard = logit_cache.teacher_rows(model, part, k, list(temperatures), pad_id=0, vocabulary=vocab_size, chunk=4)
        logit_cache.write_shard(build / f"shard-{number:05d}.safetensors", shard, vocab_size)
    entries = [{"file": path.name} for path in sorted(build.glob("*.safetensors"))]
    facts = {"format": "top_k/2", "k": k, "temperatures": list(temperatures), "shards": entries, **MADE_FROM}
    manifest = tmp_path / "cache" / "manifest.json"
    publish(build, manifest, "logit_cache", facts)
    return manifest


def test_cached_logits_equal_a_live_forward(tmp_path, toy_model) -> None:
    cache = LogitCache(*open_artefact(make(tmp_path, toy_model), "logit_cache"))
    for row in reversed(ROWS):
        with torch.no_grad():
            live = toy_model(torch.tensor([row["input_ids"]])).logits[0, 1:-1]
        for temperature in (1.0, 2.0):
            found = cache.teacher(row["example_id"], temperature, len(live))
            top = torch.topk(live, 8, dim=-1)
            assert found.ids.tolist() == top.indices.tolist()
            torch.testing.assert_close(found.logits, top.values, rtol=1e-5, atol=1e-5)
            others = live.scatter(1, top.indices, -torch.inf) / temperature
            torch.testing.assert_close(found.rest, torch.logsumexp(others, -1), rtol=1e-5, atol=1e-5)


def test_what_is_left_to_the_other_tokens_has_its_digits_however_little_it_is() -> None:
    z = torch.cat([torch.full((1, 2), 500.0), torch.linspace(0, 1, 30)[None]], 1)
    found = [logit_cache.top_and_rest(z.clone(), k, [1.0, 0.5]) for k in (1, 2, 32)]
    expected = torch.stack([torch.logsumexp(z[:, 2:].double() / t, -1) for t in (1.0, 0.5)], 1).float()
    torch.testing.assert_close(found[1][2], expected)
    assert found[0][2].tolist() == [[500.0, 1000.0]] and (found[2][2] == -torch.inf).all()
    assert [(values.shape, ids.shape) for values, ids, _ in found] == [((1, k), (1, k)) for k in (1, 2, 32)]


@pytest.mark.parametrize("shape", [Qwen3Config, Gemma3TextConfig])
@pytest.mark.parametrize("vocabulary", [151_936, 262_144])
def test_kd_from_a_teacher_of_a_large_vocabulary(tmp_path, shape, vocabulary: int) -> None:
    """Random weights in the shape of Qwen 3 and Gemma 3: the loss from the cache is that of all logits, tail as a bucket."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
    config = shape(**sizes, num_key_value_heads=1, vocab_size=vocabulary, initializer_range=1.0, tie_word_embeddings=True)
    teacher, student = (AutoModelForCausalLM.from_config(config).eval() for _ in range(2))
    with torch.no_grad():
        teacher.get_input_embeddings().weight[131_072:] *= 3  # likely tokens
    cache = LogitCache(*open_artefact(make(tmp_path, teacher, vocab_size=vocabulary), "logit_cache"))
    row = ROWS[0]
    batch = Collator([row], [], pad_id=0, cache=cache, temperature=1.0)([{"row": 0}])
    terms = _distillation_forward(student, **batch, kd=KdLoss(alpha=0.0, temperature=1.0, tail="ghost"))
    with torch.no_grad():
        z, s = (model(torch.tensor([row["input_ids"]])).logits[0, 1:-1].double() for model in (teacher, student))
    top = z.topk(8, dim=-1).indices
    assert int(top.max()) >= 131_072, "ids need more than 17 bits"
    p, q = z.softmax(-1), s.softmax(-1)
    inside = (p.gather(1, top) * (p.gather(1, top) / q.gather(1, top)).log()).sum(-1)
    rest = [1 - found.gather(1, top).sum(-1) for found in (p, q)]
    expected = (inside + rest[0] * (rest[0] / rest[1]).log()).sum()
    torch.testing.assert_close(terms["loss"].detach().double(), expected, rtol=1e-4, atol=1e-4)
    terms["loss"].backward()
    assert student.get_input_embeddings().weight.grad.isfinite().all()


def test_a_bf16_cache_is_as_near_to_a_live_forward_as_two_live_forwards_are(tmp_path, toy_model) -> None:
    model = copy.deepcopy(toy_model).to(torch.bfloat16)
    cache = LogitCache(*open_artefact(make(tmp_path, model), "logit_cache"))
    to_cache, control = 0.0, 0.0
    for row in ROWS:
        with torch.no_grad():
            alone = model(torch.tensor([row["input_ids"]])).logits[0, 1:-1].float()
            beside = model(torch.tensor([row["input_ids"], row["input_ids"]])).logits[1, 1:-1].float()
        found = cache.teacher(row["example_id"], 1.0, len(alone))
        assert torch.equal(found.logits, found.logits.bfloat16().float()), "nothing is lost by storing bf16"
        to_cache = max(to_cache, (found.logits - alone.gather(1, found.ids)).abs().max().item())
        control = max(control, (alone - beside).abs().max().item())
    largest = alone.abs().max().item()
    assert to_cache <= max(2 * control, largest * 2**-7), (to_cache, control)


@torch.no_grad()
def test_a_shuffled_padded_kd_batch_is_the_sum_of_its_examples(tmp_path, toy_model) -> None:
    cache = LogitCache(*open_artefact(make(tmp_path, toy_model), "logit_cache"))
    collate = Collator(ROWS, [], pad_id=0, cache=cache, temperature=2.0)
    student = copy.deepcopy(toy_model)
    student.lm_head.weight.mul_(0.7)  # another distribution than the teacher's

    def loss(numbers: list[int]) -> torch.Tensor:
        batch = collate([{"row": number} for number in numbers])
        terms = _distillation_forward(student, **batch, kd=KdLoss(alpha=0.3, temperature=2.0, tail="ghost"))
        return torch.stack([terms["loss"], terms["cross_entropy"], terms["kl"]])

    order = [3, 0, 4, 1, 2, 3, 0]  # two epochs, cut
    alone = sum(loss([number]) for number in order)
    torch.testing.assert_close(loss(order), alone, rtol=1e-5, atol=1e-4)
    assert (alone > 0.1).all()


@pytest.mark.parametrize("vocabulary", [65_536, 100_352, 131_072, 151_936, 201_088, 262_144, 1 << 24])
def test_ids_of_every_size_survive_packing_at_a_byte_more_than_two_each_at_most(tmp_path, vocabulary: int) -> None:
    ids = torch.tensor([[0, 65535, 65536], [100351, 7, 70000], [131071, 131072, 1]]) % vocabulary
    ids[1, 1] = vocabulary - 1
    shard = logit_cache.Shard([1, 2], [1, 2], ids, torch.zeros(3, 3), torch.zeros(3, 1))
    build = tmp_path / "build"
    build.mkdir()
    path = build / "shard-00000.safetensors"
    logit_cache.write_shard(path, shard, vocabulary)
    size = sum(tensor.numel() * tensor.element_size() for name, tensor in shard.tensors(vocabulary).items() if "ids" in name)
    assert size <= ids.numel() * (2 if vocabulary <= 65_536 else 3)
    facts = {"format": "top_k/2", "temperatures": [1.0], "shards": [{"file": path.name}]}
    publish(build, tmp_path / "cache" / "manifest.json", "logit_cache", facts)
    cache = LogitCache(*open_artefact(tmp_path / "cache" / "manifest.json", "logit_cache"))
    assert cache.teacher(1, 1.0, 1).ids.tolist() == ids[:1].tolist()
    assert cache.teacher(2, 1.0, 2).ids.tolist() == ids[1:].tolist()
    with pytest.raises(CacheError, match="16777217 tokens"):
        logit_cache.write_shard(path, shard, (1 << 24) + 1)


def test_a_question_that_the_cache_cannot_answer_is_refused(tmp_path, toy_model) -> None:
    manifest = make(tmp_path, toy_model)
    cache = LogitCache(*open_artefact(manifest, "logit_cache"))
    right = MADE_FROM | {"format": "top_k/2", "k": 8}
    cache.check(right, 2.0)
    with pytest.raises(CacheError, match=r"temperature = 4.0, but the cache at .* was made for \[1.0, 2.0\]: rebuild it or"):
        cache.check(right, 4.0)
    for fact, made in MADE_FROM.items():
        message = f"made with {fact} = {made[:12]}, asked for other: rebuild the cache"
        with pytest.raises(CacheError, match=message):
            cache.check(right | {fact: "other"}, 1.0)
    with pytest.raises(CacheError, match="made with k = 8, asked for 16: rebuild the cache"):
        cache.check(right | {"k": 16}, 1.0)
    with pytest.raises(CacheError, match="made with format = top_k/2, asked for random/1: rebuild the cache"):
        cache.check(right | {"format": "random/1"}, 1.0)
    with pytest.raises(CacheError, match="example 0 has 2 cached positions, but 3 loss tokens"):
        cache.teacher(0, 1.0, 3)
    with pytest.raises(CacheError, match="example 7 is not in the cache"):
        cache.teacher(7, 1.0, 2)


def test_a_damaged_shard_is_named(tmp_path, toy_model) -> None:
    manifest = make(tmp_path, toy_model)
    shard = manifest.parent / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CacheError, match="shard-00001.safetensors has a wrong checksum"):
        LogitCache(*open_artefact(manifest, "logit_cache"))
    shard.write_bytes(content[:-3])
    with pytest.raises(ArtefactError, match="shard-00001.safetensors is missing or damaged"):
        open_artefact(manifest, "logit_cache")


def test_an_unknown_format_is_refused(tmp_path, toy_model) -> None:
    folder, facts = open_artefact(make(tmp_path, toy_model), "logit_cache")
    with pytest.raises(CacheError, match=r"format 'top_k/1' is none of \['random/1', 'top_k/2'\]: rebuild the cache"):
        LogitCache(folder, facts | {"format": "top_k/1"})
