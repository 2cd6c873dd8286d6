"""The section `output`: where things lie."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from workflow_scripts.settings.section import Section, Text


class Output(Section):
    """Where things lie. `{experiment}` is replaced by the experiment's name."""

    root: Text = Field("results", description="Shared results: models, corpus, teacher artefacts, state, comparison.")
    output_dir: Text | None = Field(None, description="Models and evaluation of an experiment. Null: <root>/{experiment}.")
    run_dir: Text | None = Field(None, description="Summary, stage records and CodeCarbon rows. Null: <root>/{experiment}.")
    download_dir: Text | None = Field(None, description="Archives of packaged models and data. Null: <root>/downloads.")

    @model_validator(mode="after")
    def _placeholders(self) -> Output:
        for key in ("output_dir", "run_dir"):
            value = getattr(self, key)
            if value is not None and value.count("{experiment}") != 1:
                raise ValueError(f"{key} = {value!r} must contain {{experiment}} exactly once")
        for key in ("root", "output_dir", "run_dir", "download_dir"):
            rest = (getattr(self, key) or "").replace("{experiment}", "")
            if "{" in rest or "}" in rest:
                raise ValueError(f"{key} must not contain braces other than {{experiment}}")
        return self

    def experiment_dir(self) -> str:
        """Pattern of the folder with an experiment's models."""
        return self.output_dir or f"{self.root}/{{experiment}}"

    def record_dir(self) -> str:
        """Pattern of the folder with an experiment's records."""
        return self.run_dir or f"{self.root}/{{experiment}}"

    def folders(self) -> list[str]:
        """Folders that the results go to, above those of one experiment."""
        patterns = (self.experiment_dir(), self.record_dir())
        return [self.root, *(str(Path(pattern.partition("{experiment}")[0])) for pattern in patterns), self.downloads()]

    def downloads(self) -> str:
        """Folder of downloaded archives."""
        return self.download_dir or f"{self.root}/downloads"
