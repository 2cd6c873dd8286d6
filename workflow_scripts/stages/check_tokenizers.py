"""check_tokenizers: can a teacher and a student exchange token ids? Runs before the expensive stages.

python -m workflow_scripts.stages.check_tokenizers --settings '{}' --teacher MANIFEST --student MANIFEST --out FILE
"""

from __future__ import annotations

from workflow_scripts.artefact import read_json, write_json
from workflow_scripts.errors import UserError
from workflow_scripts.stages.runtime.common import Arguments, run_stage


class TokenizerError(UserError):
    """Two models that cannot exchange token ids."""


def check_tokenizers(args: Arguments) -> None:
    """Raise TokenizerError unless both models have the same vocabulary and the student has an embedding for each token."""
    teacher, student = read_json(args.inputs["teacher"]), read_json(args.inputs["student"])
    if teacher["tokenizer_sha256"] != student["tokenizer_sha256"]:
        raise TokenizerError(
            f"model.teacher {teacher['name']!r} and model.student {student['name']!r} have different tokenizers "
            f"({teacher['tokens']} and {student['tokens']} tokens): distillation on token ids needs one vocabulary: choose "
            "models of one family, or set model.student_chat_template (sft, dpo, baseline) to give the student its own"
        )
    write_json(args.out, {"tokenizer_sha256": teacher["tokenizer_sha256"], "tokens": teacher["tokens"]})


if __name__ == "__main__":
    run_stage(check_tokenizers, ["teacher", "student"])
