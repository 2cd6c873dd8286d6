"""synthetic_generation: the teacher answers training prompts.

python -m workflow_scripts.stages.synthetic_generation --settings JSON --teacher MANIFEST --corpus MANIFEST --part N-of-M
    --out MANIFEST

One batch of prompts is one unit: finished ones stay in the state folder; merge_answers filters and publishes them.
"""

from __future__ import annotations

from typing import Any

from workflow_scripts.artefact import open_artefact
from workflow_scripts.distill import corpus
from workflow_scripts.distill.backends import check_backend, open_backend
from workflow_scripts.distill.batching import by_length
from workflow_scripts.distill.generation import Answer, Prompt, ends_of_turns, prompt_tokens, that_fit
from workflow_scripts.distill.models import compute_dtype, load_tokenizer, open_model
from workflow_scripts.distill.seeds import prompt_seed
from workflow_scripts.progress import Progress
from workflow_scripts.settings.schema import Generation
from workflow_scripts.stages.runtime.common import Arguments, run_stage
from workflow_scripts.stages.runtime.units import Part, Units, finish_part


def synthetic_generation(args: Arguments) -> None:
    """Answer the prompts of one part."""
    data = args.settings.synthetic_data
    corpus_folder, _ = open_artefact(args.inputs["corpus"], "corpus")
    questions = corpus.questions(corpus_folder, "train", data.max_gen_examples)
    answer_part(args, "teacher", questions, data.generation, "synthetic_data.generation", "scatter.synthetic_generation")


def answer_part(
    args: Arguments, writer: str, questions: dict[int, corpus.Messages], options: Generation, key: str, scatter: str
) -> None:
    """Let the model of the input `writer` answer one part of the questions; `key` is the section of `options`."""
    settings, part = args.settings, Part.parse(args.extra["part"])
    corpus_folder, facts = open_artefact(args.inputs["corpus"], "corpus")
    model_folder, model = open_model(args.inputs[writer])
    check_backend(options, key)
    of = settings.teacher if writer == "teacher" else settings.training
    dtype = compute_dtype(of.dtype, training=False)
    tokenizer = load_tokenizer(corpus_folder / "tokenizer")
    prompts = [
        Prompt(key, prompt_tokens(tokenizer, question), prompt_seed(options.seed, key)) for key, question in questions.items()
    ]
    prompts = that_fit(prompts, lambda prompt: len(prompt.input_ids), options.max_new_tokens, model)
    batches = by_length(prompts, options.batch_size, lambda prompt: len(prompt.input_ids))
    units = Units(len(batches))
    mine = sum(len(batches[number]) for number in part.numbers(len(batches)))
    with Progress("generated", total=mine * options.max_new_tokens, phase="start") as progress:
        todo = list(units.todo(part, scatter, progress))
        if todo:
            write = open_backend(
                options,
                model_folder,
                dtype,
                settings.model.attn_implementation,
                max(len(prompt.input_ids) for prompt in prompts),
                ends_of_turns(model, facts),
                tokenizer.pad_token_id,
            )
        progress.phase("work")
        for number in todo:
            rows, work = [], {"examples": 0, "generated": 0, "input": 0}
            by_key = {prompt.key: prompt for prompt in batches[number]}
            for answers in write(batches[number]):
                rows += [answer_row(by_key[answer.key], answer, tokenizer) for answer in answers]
                added = {
                    "examples": len(answers),
                    "generated": sum(answer.generated for answer in answers),
                    "input": sum(len(by_key[answer.key].input_ids) for answer in answers),
                }
                work = {kind: count + added[kind] for kind, count in work.items()}
                progress.add(**added)
            units.save(number, {"work": work, "answers": rows})
            progress.saved()
    finish_part(args.out, part, units)


def answer_row(prompt: Prompt, answer: Answer, tokenizer: Any) -> dict[str, Any]:
    """What the merge needs of one answer; the completion ends with its end token when the teacher ended by itself."""
    return {
        "example_id": prompt.key,
        "prompt_ids": prompt.input_ids,
        "completion": answer.completion,
        "text": tokenizer.decode(answer.token_ids, skip_special_tokens=True),
        "length": len(answer.token_ids),
        "generated": answer.generated,
        "truncated": answer.truncated,
    }


if __name__ == "__main__":
    run_stage(synthetic_generation, ["teacher", "corpus"], ["part"])
