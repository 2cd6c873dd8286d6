"""preprocess on a generated file of short rows, on one core: rows per CPU second and the peak of its memory.

python -m benchmarks.preprocess [--rows 900000] [--model FOLDER] [--folder FOLDER]

900,000 rows are the size of the Tulu 3 SFT mixture. Without a model's folder the tokenizer is trained on the rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row
from benchmarks.memory import peak

SYLLABLES = ("pla", "mo", "ter", "in", "re"), ("ni", "ko", "sta", "le"), ("n", "r", "ment", "s", "")
WORDS = ["".join(word) for word in itertools.product(*SYLLABLES)]


def generate(path: Path, rows: int) -> None:
    """Short questions and answers, each its own."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as handle:
        for number in range(rows):
            said = [f"{' '.join(draw.choices(WORDS, k=count))} {number}" for count in (8, 8)]
            turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)]
            handle.write(json.dumps({"id": number, "messages": turns, "source": "generated"}) + "\n")


def tokenizer_for(path: Path, folder: Path) -> None:
    """A byte-level BPE of 8,000 tokens, trained on the beginning of the file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.BPE())
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    with path.open(encoding="utf-8") as handle:
        lines = [json.loads(line)["messages"][1]["content"] for _, line in zip(range(5000), handle, strict=False)]
    trainer = trainers.BpeTrainer(vocab_size=8000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    model.train_from_iterator(lines, trainer)
    PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<|end|>", eos_token="<|end|>").save_pretrained(folder)


def measure(rows: int, model: Path | None, folder: Path) -> list[Row]:
    """Run the stage once in this process."""
    from workflow_scripts.artefact import read_json, write_json
    from workflow_scripts.plan import slices
    from workflow_scripts.stages.preprocess import preprocess
    from workflow_scripts.stages.runtime.common import Arguments

    file = folder / "rows.jsonl"
    generate(file, rows)
    if model is None:
        model = folder / "tokenizer"
        tokenizer_for(file, model)
    facts = {"schema": "artefact/1", "kind": "model", "name": "m", "path": str(model.absolute()), "end_token_ids": []}
    facts |= {"max_position_embeddings": 4096, "tokenizer_sha256": "generated"}
    write_json(folder / "teacher.json", facts)
    data = {"dataset_choice": "rows", "datasets": {"rows": {"dataset_path": str(file)}}, "max_sequence_length": 1024}
    data |= {"train_examples": rows, "evaluation_examples": 500, "seed": 0, "max_dropped_share": 0.05}
    settings = slices.read(json.dumps({"data": data, "model": {"chat_template": "olmo2"}}))
    out = folder / "corpus" / "manifest.json"
    began, wall = time.process_time(), time.perf_counter()
    preprocess(Arguments(settings, {"teacher": folder / "teacher.json"}, out, {"download_dir": ""}))
    took, wall = time.process_time() - began, time.perf_counter() - wall
    made = read_json(out)["splits"]["train"]
    tokens = made["input_tokens"] / made["examples"]
    figures = f"{rows} rows of {tokens:.0f} tokens in {took:.0f} CPU seconds ({wall:.0f} s)"
    return [
        Row("preprocess, rows per CPU second", "5,000", rows / took, ">= 5000", figures),
        Row("preprocess, peak memory [GB]", "2 GB", peak() / 1000, "<= 2", f"{rows} rows, the whole process"),
    ]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=900_000)
    parser.add_argument("--model", type=Path, help="folder whose tokenizer is used")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for row in measure(options.rows, options.model, Path(folder)):
            print(f"{row.name}: {row.ratio:.4g} (wanted {row.wanted}, reached: {row.reached}); {row.figures}")


if __name__ == "__main__":
    main()
