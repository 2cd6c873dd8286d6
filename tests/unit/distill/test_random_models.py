"""Random models have the published shapes, a real tokenizer, and say what they are."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedTokenizerFast

from tests.helpers.partial import partial
from workflow_scripts.artefact import RANDOM_WEIGHTS, inherited, read_json
from workflow_scripts.distill.backends import padding_rows
from workflow_scripts.distill.models import ModelError, load_model
from workflow_scripts.distill.random_weights import write_random_model
from workflow_scripts.plan.plan import Plan
from workflow_scripts.settings import SettingsError
from workflow_scripts.settings.models import RandomModel
from workflow_scripts.settings.shapes import SHAPES, Shape, config_values, published_shape, resized
from workflow_scripts.stages.prepare_model import prepare_model
from workflow_scripts.stages.runtime.common import Arguments

SMALL = Shape(32, 64, 2, 4, 2, vocab_size=128, max_position_embeddings=64)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """97 words; 0 pads, 2 ends."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2", bos_token="w2", unk_token="w1")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("olmo2-1b", 1.485e9), ("olmo2-7b", 7.299e9), ("olmo2-13b", 13.72e9), ("olmo2-32b", 32.23e9), ("olmo2-10m", 1.0e7)],
)
def test_a_shape_has_the_parameters_of_the_library_s_model_and_of_the_published_one(name: str, parameters: float) -> None:
    with torch.device("meta"):
        model = Olmo2ForCausalLM(Olmo2Config(**config_values(SHAPES[name]), pad_token_id=0, eos_token_id=2))
    assert SHAPES[name].parameters() == model.num_parameters()
    assert SHAPES[name].parameters() == pytest.approx(parameters, rel=0.01)


def test_published_names_are_known_and_others_are_not() -> None:
    assert published_shape("allenai/OLMo-2-0425-1B") is SHAPES["olmo2-1b"]
    assert published_shape("/models/OLMo-2-1124-7B-SFT/") is SHAPES["olmo2-7b"]
    assert published_shape("allenai/OLMo-2-0325-32B-Instruct") is SHAPES["olmo2-32b"]
    assert published_shape("allenai/OLMo-7B") is None and published_shape("meta-llama/Llama-2-7b") is None


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size = 100 over num_attention_heads = 4"):
        resized("olmo2-10m", {"hidden_size": 100})
    with pytest.raises(ValueError, match="num_attention_heads = 4 is no multiple of num_key_value_heads = 3"):
        RandomModel(source="random", architecture="olmo2-10m", tokenizer="x", num_key_value_heads=3)


def test_weights_do_not_depend_on_the_shards_and_follow_the_seed(tmp_path, tokenizer) -> None:
    for name, seed, shard in (("whole", 0, 1 << 30), ("split", 0, 20_000), ("other", 1, 1 << 30)):
        (tmp_path / name).mkdir()
        write_random_model(tmp_path / name, SMALL, tokenizer, torch.bfloat16, seed, shard)
    assert padding_rows(tmp_path / "whole") == range(97, 128)
    whole = load_file(tmp_path / "whole" / "model-00001-of-00001.safetensors")
    files = sorted((tmp_path / "split").glob("*.safetensors"))
    assert len(files) > 2
    split = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert whole.keys() == split.keys() and all(torch.equal(whole[n], split[n]) for n in whole)
    other = load_file(tmp_path / "other" / "model-00001-of-00001.safetensors")
    head = "lm_head.weight"
    assert not torch.equal(whole[head], other[head])
    assert whole[head].float().std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(whole["model.norm.weight"], torch.ones(32, dtype=torch.bfloat16))
    index = json.loads((tmp_path / "split" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * SMALL.parameters()


def test_a_random_model_loads_answers_and_is_marked(tmp_path, tokenizer, monkeypatch) -> None:
    monkeypatch.setenv("STAGE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("STAGE_PROGRESS", str(tmp_path / "progress.json"))
    (tmp_path / "words").mkdir()
    tokenizer.save_pretrained(tmp_path / "words")
    source = RandomModel(source="random", architecture="olmo2-10m", tokenizer=str(tmp_path / "words"), num_hidden_layers=1)
    manifest = tmp_path / "model" / "manifest.json"
    prepare_model(Arguments(partial(models={"random": source.model_dump(mode="json")}), {}, manifest, {"download_dir": ""}))
    facts = read_json(manifest)
    assert facts["warnings"] == [RANDOM_WEIGHTS] and facts["source"] == "random"
    assert (facts["tokens"], facts["vocab_size"]) == (97, 49_280)
    assert facts["parameters"] == resized("olmo2-10m", {"num_hidden_layers": 1}).parameters()
    assert read_json(tmp_path / "progress.json")["warnings"] == [RANDOM_WEIGHTS]
    assert "its quality means nothing" in (tmp_path / "model" / "README.md").read_text()
    model = load_model(manifest.parent, torch.float32)
    assert model.config.model_type == "olmo2" and model.lm_head.weight.dtype == torch.float32
    assert model(torch.tensor([[5, 6, 7]])).logits[0, -1].argmax() < 97
    assert inherited([manifest]) == {"warnings": [RANDOM_WEIGHTS]}


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path, tokenizer) -> None:
    with pytest.raises(ModelError, match="vocab_size = 64, but the tokenizer has 97 tokens"):
        write_random_model(tmp_path, resized("olmo2-10m", {"vocab_size": 64}), tokenizer, torch.float32, 0)


def test_the_plan_makes_the_tokenizer_s_model_first_and_refuses_a_circle(tmp_path) -> None:
    from tests.unit.settings.test_settings import load

    teacher = {"source": "random", "architecture": "olmo2-10m", "tokenizer": "smollm2-135m-instruct"}
    settings = load(tmp_path, {"one": {"pipeline": "kd", "model": {"teacher": "big"}, "models": {"big": teacher}}})
    plan = Plan(settings)
    assert plan.models["big"].inputs == {"tokenizer": "results/models/smollm2-135m-instruct/model/manifest.json"}
    assert "smollm2-135m-instruct" in plan.models
    circle = load(
        tmp_path, {"one": {"pipeline": "kd", "model": {"teacher": "a"}, "models": {"a": teacher | {"tokenizer": "a"}}}}
    )
    with pytest.raises(SettingsError, match="models: a <- a goes in a circle"):
        Plan(circle)


def test_the_forecast_knows_published_and_random_models_before_they_are_prepared(tmp_path) -> None:
    from tests.unit.estimate.test_forecast import planned
    from workflow_scripts.estimate.artefacts import Artefacts, UnpricedError

    def parameters(**source) -> float:
        job = planned("prepare_model", {"models": {"x": source}}, record="results/models/x/stages/prepare_model.json")
        return Artefacts([job], tmp_path).parameters("results/models/x/model/manifest.json")

    assert parameters(source="hub", repo_id="allenai/OLMo-2-1124-7B-SFT", revision="main") == SHAPES["olmo2-7b"].parameters()
    changed = {"architecture": "olmo2-10m", "tokenizer": "t", "num_hidden_layers": 2}
    assert parameters(source="random", **changed) == resized("olmo2-10m", {"num_hidden_layers": 2}).parameters()
    with pytest.raises(UnpricedError, match="not known before it is prepared"):
        parameters(source="hub", repo_id="who/knows", revision="main")
