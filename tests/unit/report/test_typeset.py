"""The comparison as Markdown and LaTeX: cells worked out by hand, nothing that LaTeX or Markdown would read as its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers.summaries import baseline, kd, write
from workflow_scripts.accounting.load import load
from workflow_scripts.accounting.rows import Comparison
from workflow_scripts.report import table as terminal
from workflow_scripts.report.pages import latex as escape
from workflow_scripts.report.pages import render
from workflow_scripts.report.sentences import sentences
from workflow_scripts.stages.comparison import compare, main

KWH = 3.6e6


def comparison(tmp_path: Path, *summaries: dict, gold: str | None = "gold") -> Comparison:
    return compare(load([Path(p) for p in write(tmp_path, *summaries)]), "cross_entropy", [gold] if gold else [])[0]


def markdown(made: Comparison) -> str:
    return render(made, "comparison.md")


def latex(made: Comparison) -> str:
    return render(made, "comparison.tex")


@pytest.fixture
def made(tmp_path: Path) -> Comparison:
    """Gold: training 2 kWh. KD: cache 0.6, training 1.6 kWh, in each 5 % of RAPL; a name that both languages would read."""
    cheap = kd("kd_50%_&co", 0.6 * KWH, 1.6 * KWH)
    gold = baseline(student=2 * KWH, comparable={"seed": 2}, stage={"loss": 1000})
    return comparison(tmp_path, gold, cheap)


def test_markdown_has_every_figure_with_uncertainty_class_and_boundary(made: Comparison) -> None:
    text = markdown(made)
    lines = text.partition("## What each method costs")[2].splitlines()
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    gold = dict(zip(table[0], table[2], strict=True))
    assert gold["training \\[kWh\\]"] == gold["method \\[kWh\\]"] == "2 ± 0.1"
    assert gold["policy \\[kWh\\]"] == gold["teacher \\[kWh\\]"] == ""
    assert gold["J/loss token"] == "7200 ± 360"
    assert gold["experiment"] == "gold" and table[3][2:6] == ["0.6 ± 0.03", "1.6 ± 0.08", "", "2.2 ± 0.11"]
    assert "1.5 (no interval)" in text, "0.6 / (2 - 1.6)"
    assert "| cpu | RAPL | measured |" in text
    assert "- seed differs: gold: 2; kd\\_50%\\_&co: 1" in text
    assert "Energy: measured, boundary cpu." in text


def test_latex_has_the_same_tables_in_booktabs(made: Comparison) -> None:
    text = latex(made)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 5
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 5
    (line,) = (line for line in text.splitlines() if "0.6 $\\pm$ 0.03" in line)
    assert line.strip().startswith(r"kd\_50\%\_\&co & 1 & 0.6 $\pm$ 0.03 & 1.6 $\pm$ 0.08 &  & 2.2 $\pm$ 0.11 &")
    assert r"\item kd\_50\%\_\&co: undetermined." in text
    assert text.count("Energy: measured, boundary cpu.") == 5, "in each caption"
    assert r"  \item seed differs: gold: 2; kd\_50\%\_\&co: 1" in text


def test_latex_has_as_many_cells_as_columns_and_nothing_unescaped(made: Comparison) -> None:
    text = latex(made)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("% "))
    for table in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", body, re.DOTALL):
        columns, rows = table
        lines = [line for line in rows.splitlines() if line.endswith(r"\\")]
        assert len(lines) >= 2
        for line in lines:
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1, line
    rest = re.sub(r"\\[&%$#_{}]|\$\\(?:pm|times)\$|(?<!\\)&", "", body)
    assert not re.findall(r"[%#_~^$&]", re.sub(r"tab:[a-z-]+", "", rest))
    assert rest.count("{") == rest.count("}")
    assert sorted(re.findall(r"\\begin\{(\w+)\}", body)) == sorted(re.findall(r"\\end\{(\w+)\}", body))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"a\b", r"a\textbackslash{}b"),
        ("{x}~^", r"\{x\}\textasciitilde{}\textasciicircum{}"),
        ("1 < 2 | 3 > 2", r"1 \textless{} 2 \textbar{} 3 \textgreater{} 2"),
        ("[Wh]", "{[}Wh{]}"),
        ("3 ± 1\n#4 $5", r"3 $\pm$ 1 \#4 \$5"),
    ],
)
def test_special_characters(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_no_baseline_says_so_and_has_no_empty_table(tmp_path: Path) -> None:
    made = comparison(tmp_path, baseline(student=KWH), gold=None)
    assert "No baseline is named" in markdown(made)
    assert latex(made).count(r"\begin{table}") == 3


def test_the_comparison_writes_both_and_the_same_twice(tmp_path: Path) -> None:
    paths = write(tmp_path, baseline(student=2 * KWH), kd("kd", 0.6 * KWH, 1.6 * KWH))
    out = tmp_path / "comparison" / "comparison.json"
    found = []
    for _ in range(2):
        assert main(["--summary", *paths, "--baseline", "gold", "--out", str(out)]) == 0
        found.append([out.with_suffix(ending).read_bytes() for ending in (".md", ".tex")])
    assert found[0] == found[1] and b"\\toprule" in found[0][1] and b"| kd |" in found[0][0]


def test_the_terminal_has_the_table_the_verdicts_and_the_warnings(
    made: Comparison, tmp_path: Path, capsys, monkeypatch
) -> None:
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(made.content()))
    monkeypatch.setattr("sys.argv", ["table", str(path), "report.html"])
    assert terminal.main() == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[:4]}
    assert rows["gold"][:7] == ["-", "2.000000", "-", "2.000000", "0.100000", "-", "10"]
    assert rows["kd_50%_&co"][:5] == ["0.600000", "1.600000", "-", "2.200000", "0.110000"]
    assert {f"  {text}" for text, _ in sentences(made)} <= set(lines), "the page's sentences, word for word"
    assert "warning: seed differs: gold: 2; kd_50%_&co: 1" in lines
    assert lines[-1] == "Report: report.html (opens in a browser, offline)"
