"""The section `model`: teacher, student and starting policy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workflow_scripts.settings.section import Name, Section, Text


class Model(Section):
    """Teacher, student and starting policy: each a name in `models`, a folder, or a Hugging Face id."""

    teacher: Text = Field(description="The model that is distilled.")
    student: Text = Field(description="The model that is trained (kd, sft, baseline; dpo and opd without `policy`).")
    policy: Name | None = Field(
        None, description="dpo, opd: name of the experiment whose final model the policy starts from. Null: the student."
    )
    chat_template: Text = Field(
        "smollm2",
        description="Name of a shipped template or path of a .jinja file, with {% generation %} markers around "
        "assistant turns. `tokenizer` takes the teacher tokenizer's own.",
    )
    student_chat_template: Text | None = Field(
        None,
        description="Null: the student has the teacher's tokenizer. Else it has its own, and this is its template, named as "
        "chat_template is; all text is then tokenised for it (not for kd, which exchanges token ids).",
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = Field("sdpa", description="Attention kernel.")
