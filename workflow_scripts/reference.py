"""The configuration reference and the JSON schema, generated from the models.

python -m workflow_scripts.reference --write      rewrite config/README.md, the schemas, what is drawn from the registry
python -m workflow_scripts.reference              exit 1 when they are not in step
"""

from __future__ import annotations

import json
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from workflow_scripts.accounting.model import ExperimentSummary
from workflow_scripts.accounting.prediction import Forecast
from workflow_scripts.energy.model import StageRecord
from workflow_scripts.estimate import memory
from workflow_scripts.pipelines import PIPELINES, rules
from workflow_scripts.settings.load import EXTENDS, load_experiments, models_in, read_yaml
from workflow_scripts.settings.schema import CAMPAIGN_SECTIONS, Settings
from workflow_scripts.settings.shapes import published_shape

ROOT = Path(__file__).parents[1]
RECORD_SCHEMA = ROOT / "workflow_scripts" / "energy" / "record_schema.json"
SUMMARY_SCHEMA = ROOT / "workflow_scripts" / "accounting" / "summary_schema.json"
FORECAST_SCHEMA = ROOT / "workflow_scripts" / "accounting" / "forecast_schema.json"
INTRODUCTION = """# Configuration reference

Generated from `workflow_scripts/settings/` by `make reference`; do not edit. `config/schema.json` is the same as a
JSON schema for editors.

An experiment is a file `config/experiments/<name>.yaml`, deep-merged over `config/base.yaml`; the command line beats both:
`snakemake --configfile overlay.yaml`, or `--config training='{learning_rate: 1e-4}'`. Adding a file adds the target `<name>`.
What several experiments have in common stands in `config/shared/<name>.yaml`: the key `extends: <name>` in an experiment (or in
another shared file) puts it between base.yaml and the file itself. The sections %s hold
for the whole campaign and are refused in an experiment's file. Unknown keys, keys that stand twice, wrong types and values out
of bounds are refused with one line that names key, value and bound. `2e-5` and `1_000` are numbers. The first line of each
shipped file tells editors the schema.
"""
PROFILE = ROOT / "profiles" / "slurm" / "config.yaml"
MEMBERS = re.compile(r"(?<=^  members: # the registry's, by make reference\n)(?:    .*\n)+", re.MULTILINE)
MARKS = ("<!-- picture, made by make reference -->", "<!-- end of picture -->")
REAL_SIZES = """
## Real sizes

`baseline_{1b,7b,13b}`, `{kd,sft,opd,dpo}_7b_to_1b`, `opd_32b_to_1b`, `{kd,sft}_32b_to_{1b,7b,13b}` are OLMo 2 on Tulu 3; they
extend `config/shared/olmo2.yaml`. `snakemake --configfile config/olmo2.yaml` makes and compares the four of 7B to 1B; that
file holds what belongs to the campaign: comparison, paths, prerun, jobs per teacher stage. With `config/olmo2_random.yaml`
after it the same shapes run on random weights, without a model hub. What a stage needs is computed before it runs, by
`python -m workflow_scripts memory EXPERIMENT... [--gpu-gb 24 48 80]` (the command's docstring says how): all of 7B to 1B fits
one GPU of 48 GB. The 32B teacher takes one of 80 GB or two of 48 GB, students of 7B and 13B are sharded over four (`fsdp`),
and their evaluation beside the teacher takes two of 80 GB. On 80 GB `synthetic_data.generation.batch_size` can be raised. GB
are 10^9 bytes of each process; hours are of one GPU with a stated, moderate speed, kWh those hours at 350 W a GPU: none of
them was measured; `disk GB` is what a stage leaves; `-` does not fit, or leaves nothing to speak of. A student of 1B fits
24 GB with adapters (`training.lora`), by the same computation.
"""


def with_picture(text: str) -> str:
    """A page with the picture of the stages (Mermaid) between its marks, drawn from the registry."""
    lines = ["prerun --> prepare_model --> preprocess"]
    for name, pipeline in PIPELINES.items():
        training = f'{name}["{pipeline.training} ({name})"]'
        if pipeline.teacher is None:
            lines.append(f"preprocess --> {training}")
        elif pipeline.in_rounds:
            lines.append(f'preprocess --> rollout --> {name}_teacher["{pipeline.teacher} ({name})"]:::teacher --> {training}')
            lines.append(f"{name} -- next round --> rollout")
        else:
            lines.append(f'preprocess --> {name}_teacher["{pipeline.teacher}"]:::teacher --> {training}')
        lines.append(f"{name} --> evaluation")
    lines += [f"baseline -. starting policy .-> {name}" for name, pipeline in PIPELINES.items() if pipeline.from_policy]
    lines += ["evaluation --> experiment_summary --> comparison", "classDef teacher stroke:#d55e00,stroke-width:2px"]
    drawn = "\n".join(["```mermaid", "flowchart LR", *(f"  {line}" for line in lines), "```"])
    before, _, rest = text.partition(MARKS[0])
    return f"{before}{MARKS[0]}\n{drawn}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}" if rest else text


def with_members(text: str) -> str:
    """A Slurm profile with the rules of each family, as the registry has them."""
    families: dict[str, list[str]] = {}
    for rule, family in rules().items():
        families.setdefault(family, []).append(rule)
    lines = "".join(f"    {family}: [{', '.join(members)}]\n" for family, members in families.items())
    return MEMBERS.sub(lambda _: lines, text)


def render() -> dict[Path, str]:
    """Contents of the generated files by path."""
    campaign = ", ".join(f"`{name}`" for name in CAMPAIGN_SECTIONS)
    parts = [INTRODUCTION % campaign]
    for key, title, model in sections("", Settings):
        document = " ".join((model.__doc__ or "").split())
        fields = {name: field for name, field in model.model_fields.items() if not models_in(field.annotation)}
        rows = [row(f"{key}.{name}" if key else name, field) for name, field in fields.items()]
        if rows:
            table = "| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows)
            parts.append(f"\n## {title}\n\n{document}\n\n{table}\n")
    parts.append(real_sizes())
    return {
        ROOT / "README.md": with_picture((ROOT / "README.md").read_text(encoding="utf-8")),
        PROFILE: with_members(PROFILE.read_text(encoding="utf-8")),
        ROOT / "config" / "README.md": "".join(parts),
        ROOT / "config" / "schema.json": json.dumps(editor_schema(), indent=1) + "\n",
        RECORD_SCHEMA: json.dumps(StageRecord.model_json_schema(mode="serialization"), indent=1) + "\n",
        SUMMARY_SCHEMA: json.dumps(ExperimentSummary.model_json_schema(mode="serialization"), indent=1) + "\n",
        FORECAST_SCHEMA: json.dumps(Forecast.model_json_schema(), indent=1) + "\n",
    }


def real_sizes() -> str:
    """Memory and time of the experiments on published models, with the campaign's file over them."""
    config = ROOT / "config"
    known = load_experiments(config, read_yaml(config / "base.yaml"), read_yaml(config / "olmo2.yaml"))
    lines = [
        line
        for name, settings in known.items()
        if published_shape(settings.model.teacher)
        for line in memory.table(name, memory.stages(settings), [24.0, 48.0, 80.0]).splitlines()
    ]
    return REAL_SIZES + "\n```\n" + "\n".join(lines) + "\n```\n"


def editor_schema() -> dict[str, Any]:
    """JSON schema of any file of the configuration: none has all required keys, and one key is gone after merging."""
    schema = Settings.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        part.pop("required", None)
    schema["properties"][EXTENDS] = {"type": "string", "description": "Name of a file of config/shared that this one changes."}
    return schema


def sections(key: str, model: type[BaseModel]) -> list[tuple[str, str, type[BaseModel]]]:
    """All sections below `model` as (dotted key, title, model), depth first."""
    found = [(key, f"`{key}`" if key else "Top level", model)]
    for name, field in model.model_fields.items():
        path = f"{key}.{name}" if key else name
        inner = models_in(field.annotation)
        if typing.get_origin(field.annotation) is dict:
            path += ".<name>"
        for section in inner:
            found += sections(path, section) if len(inner) == 1 else [(path, f"`{path}` as {section.__name__}", section)]
    return found


def row(key: str, field: FieldInfo) -> str:
    """One line of a table."""
    default = "required" if field.default is PydanticUndefined else f"`{json.dumps(field.default)}`"
    bounds = [text for item in field.metadata if (text := bound(item))]
    kind = type_name(field.annotation) + (f", {', '.join(bounds)}" if bounds else "")
    meaning = (field.description or "").replace("|", "\\|")
    return f"| `{key}` | {kind} | {default} | {meaning} |"


def bound(item: Any) -> str:
    """A bound of a field in words."""
    for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
        if getattr(item, name, None) is not None:
            return f"{sign} {getattr(item, name):g}"
    return ""


def type_name(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else type_name(a) for a in arguments)
    if origin is list:
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return "mapping"
    names = {"str": "text", "int": "integer", "float": "number", "bool": "true/false"}
    return names.get(getattr(annotation, "__name__", ""), re.sub(r"^typing\.", "", str(annotation)))


def main() -> int:
    """Write the files, or tell which are out of step."""
    files = render()
    if "--write" in sys.argv[1:]:
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [str(p.relative_to(ROOT)) for p, text in files.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    if stale:
        print(f"out of step with the models: {', '.join(stale)}: run `make reference`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
