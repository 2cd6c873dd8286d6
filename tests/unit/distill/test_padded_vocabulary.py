"""A model whose vocabulary is padded beyond the tokenizer's equals the unpadded one wherever probabilities are formed."""

import copy

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.helpers.dense_loss import dense_distillation_loss, top_k_teacher
from workflow_scripts.distill import logit_cache
from workflow_scripts.distill.generation import Prompt, generate
from workflow_scripts.distill.losses import KdLoss, fused_distillation_loss
from workflow_scripts.distill.models import PackedLinear, hide_padding, pack
from workflow_scripts.distill.scoring import agreements, log_likelihoods
from workflow_scripts.distill.training import _distillation_forward
from workflow_scripts.settings.schema import Generation

VOCABULARY = 97
ROWS = [
    {"example_id": i, "input_ids": [3 + (i * 7 + j) % 90 for j in range(5 + i)], "loss_mask": [0, 0] + [1] * (3 + i)}
    for i in range(4)
]


def padded(model, rows: int, hide: bool = True):
    """The model with an embedding of `rows` rows; the padding is loud: without a mask it would take nearly all mass."""
    config = copy.deepcopy(model.config)
    config.vocab_size, config.tie_word_embeddings = rows, False
    bigger = LlamaForCausalLM(config).eval()
    state = model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], 50.0 * state[name][torch.arange(rows - VOCABULARY) % VOCABULARY]])
    bigger.load_state_dict(state)
    if hide:
        hide_padding(bigger, VOCABULARY)
    return bigger


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_give_the_same_logits_and_keep_the_bias_of_the_padding(toy_model, dtype) -> None:
    model = padded(toy_model, 128).to(dtype)
    packed = pack(copy.deepcopy(model))
    assert dtype != torch.float32 or isinstance(packed.lm_head, PackedLinear)
    assert torch.equal(packed.lm_head.weight, model.lm_head.weight) and packed.lm_head.bias is not None
    with torch.no_grad():
        mine, theirs = (each(torch.tensor([[1, 5, 9], [3, 4, 6]])).logits.float() for each in (packed, model))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 0.05)
    assert (torch.softmax(mine, -1)[..., VOCABULARY:] == 0).all()


@pytest.fixture
def plain(toy_model):
    model = copy.deepcopy(toy_model)
    hide_padding(model, VOCABULARY)
    return model


def test_the_padding_of_this_test_is_loud(plain) -> None:
    naked = padded(plain, 128, hide=False)
    logits = naked(torch.tensor([ROWS[0]["input_ids"]])).logits
    assert torch.softmax(logits, -1)[..., VOCABULARY:].sum(-1).min() > 0.9


@pytest.mark.parametrize("rows", [104, 128])
def test_cache_likelihood_and_agreement_are_those_of_the_unpadded_model(plain, rows: int) -> None:
    model = padded(plain, rows)
    mine = logit_cache.teacher_rows(model, ROWS, 8, [1.0, 2.0], 0, VOCABULARY)
    reference = logit_cache.teacher_rows(plain, ROWS, 8, [1.0, 2.0], 0, VOCABULARY)
    assert torch.equal(mine.ids, reference.ids)
    torch.testing.assert_close((mine.logits, mine.rest), (reference.logits, reference.rest))
    assert log_likelihoods(model, ROWS, 0) == pytest.approx(log_likelihoods(plain, ROWS, 0), abs=1e-4)
    by_row = agreements(model, padded(plain, 232 - rows), ROWS, 0, VOCABULARY, chunk=5)
    assert [row.same_argmax for row in by_row] == [row.tokens for row in by_row] == [sum(r["loss_mask"][1:]) for r in ROWS]
    assert all(abs(row.kl_to_teacher) < 1e-4 for row in by_row)
    assert [-row.negative_log_likelihood for row in by_row] == pytest.approx(log_likelihoods(plain, ROWS, 0), abs=1e-4)


@pytest.mark.parametrize(("temperature", "tail"), [(1.0, "ghost"), (2.0, "ghost"), (2.0, "renormalise"), (1.0, "zero")])
def test_fused_loss_and_gradient_are_those_of_the_unpadded_head(temperature: float, tail: str) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 16), torch.randn(128, 16)
    weight[VOCABULARY:] *= 20
    targets = torch.randint(VOCABULARY, (9,))
    z = torch.randn(9, VOCABULARY) * 2
    teacher = top_k_teacher(z, 5, temperature)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    fused = fused_distillation_loss(h, w, targets, teacher, KdLoss(0.3, temperature, tail), chunk=4, vocabulary=VOCABULARY)
    fused.total.backward()
    h2, w2 = hidden.clone().requires_grad_(), weight[:VOCABULARY].clone().requires_grad_()
    reference = dense_distillation_loss(h2 @ w2.t(), targets, teacher, 0.3, temperature, tail)
    reference.total.backward()
    torch.testing.assert_close(fused.total, reference.total)
    torch.testing.assert_close(h.grad, h2.grad)
    torch.testing.assert_close(w.grad[:VOCABULARY], w2.grad)
    assert torch.count_nonzero(w.grad[VOCABULARY:]) == 0


def test_a_training_step_moves_no_padding_row(plain) -> None:
    """The trainer's forward takes the vocabulary from the model; CE is that of the unpadded model, padding has no gradient."""
    model = padded(plain, 128)
    ids = torch.tensor([ROWS[3]["input_ids"]])
    labels = torch.where(torch.arange(8) == 0, -100, ids)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    teacher = logit_cache.teacher_rows(padded(plain, 104), [ROWS[3] | {"loss_mask": [1] * 8}], 8, [1.0], 0, VOCABULARY)
    sparse = {"teacher_ids": teacher.ids, "teacher_logits": teacher.logits, "teacher_rest": teacher.rest[:, 0]}
    kd = KdLoss(alpha=0.5, temperature=1.0, tail="ghost")
    found = _distillation_forward(model, **batch, kd=kd, **sparse)
    expected = torch.nn.functional.cross_entropy(plain(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
    torch.testing.assert_close(found["cross_entropy"], expected.detach())
    assert abs(found["kl"].item()) < 1e-4
    found["loss"].backward()
    assert torch.count_nonzero(model.lm_head.weight.grad[VOCABULARY:]) == 0
    assert torch.count_nonzero(model.lm_head.weight.grad[:VOCABULARY]) > 0
    assert "lm_head.bias" not in model.state_dict() and not any("bias" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strategy", ["greedy", "sampling"])
def test_padding_is_never_generated(plain, strategy: str, dtype: torch.dtype) -> None:
    options = Generation(decoding_strategy=strategy, max_new_tokens=12, batch_size=8, temperature=5.0, top_p=1.0)
    prompts = [Prompt(i, row["input_ids"], seed=i) for i, row in enumerate(ROWS * 4)]
    mine = {a.key: a.token_ids for b in generate(padded(plain, 128).to(dtype), prompts, options, [2], 0) for a in b}
    assert max(token for tokens in mine.values() for token in tokens) < VOCABULARY
    if dtype is torch.float32:
        reference = {a.key: a.token_ids for b in generate(plain, prompts, options, [2], 0) for a in b}
        assert mine == reference
    naked = {a.key: a.token_ids for b in generate(padded(plain, 128, hide=False), prompts, options, [2], 0) for a in b}
    assert max(token for tokens in naked.values() for token in tokens) >= VOCABULARY


def test_trl_s_own_head_of_dpo_sees_no_padding(plain) -> None:
    from trl.trainer.utils import add_fused_lm_head

    model, ids = padded(plain, 128), torch.tensor([ROWS[3]["input_ids"]])
    with torch.no_grad():
        add_fused_lm_head(model)
        found = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs[0]
        expected = torch.log_softmax(plain(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(found, expected)


def test_teacher_and_student_padded_differently_share_a_tokenizer(tmp_path) -> None:
    from tests.helpers.partial import partial
    from workflow_scripts.artefact import read_json, write_json
    from workflow_scripts.stages.check_tokenizers import check_tokenizers
    from workflow_scripts.stages.runtime.common import Arguments

    facts = {"tokenizer_sha256": "t", "tokens": 100_278}
    for name, rows in (("teacher", 100_352), ("student", 100_288)):
        write_json(tmp_path / f"{name}.json", facts | {"name": name, "vocab_size": rows})
    inputs = {name: tmp_path / f"{name}.json" for name in ("teacher", "student")}
    check_tokenizers(Arguments(partial(), inputs, tmp_path / "proof.json", {}))
    assert read_json(tmp_path / "proof.json")["tokens"] == 100_278
