"""What a reader sees while a report is made: where it is, in words, and what the trainer says."""
import io
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / ".ci"))
import run_report  # noqa: E402


class Terminal(io.StringIO):
    def isatty(self): return True


def test_headings_are_counted_and_kept_until_the_next():
    cells = [new_markdown_cell("# One\n\n> Promise"), new_code_cell("1"), new_markdown_cell("text"), new_code_cell("2"), new_markdown_cell("## Two"), new_code_cell("3")]
    assert run_report.heading_of(cells) == ["(1 of 2) One"] * 4 + ["(2 of 2) Two"] * 2
    assert run_report.heading_of([new_code_cell("1")]) == [""]


def test_progress_is_a_line_now_and_then_in_a_log_and_live_in_a_terminal():
    for stream, shown in ((io.StringIO(), "10% of 9\nwarning\n"), (Terminal(), "\r10% of 9\r20% of 9warning\n")):
        teller = run_report.Teller(stream, every=60)
        for text in ("\r10% of 9", "\r20% of 9", "warning\n"): teller.write(text)
        assert stream.getvalue() == shown


def test_a_report_says_where_it_is(tmp_path, monkeypatch, capsys):
    "The whole way, in a project of one small notebook."
    (tmp_path / "nbs/evals").mkdir(parents=True)
    cells = [new_markdown_cell("# Small"), new_code_cell("n = 1", metadata={"tags": ["parameters"]}), new_markdown_cell("## Adding"), new_code_cell("import sys\nprint('\\r50% of it', file=sys.stderr)\nprint(n + 1)")]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}), tmp_path / "nbs/evals/small.ipynb")
    for name, value in (("ROOT", tmp_path), ("NBS", tmp_path / "nbs")): monkeypatch.setattr(run_report, name, value)
    monkeypatch.setattr(sys, "argv", ["run_report.py", "small", "-p", "n", "41"])
    run_report.main()
    told = capsys.readouterr()
    assert [line.split("  ")[-1] for line in told.out.splitlines()] == ["(1 of 2) Small", "(2 of 2) Adding"]
    assert "50% of it" in told.err and "Cell" not in told.err
    assert [output.text for output in nbformat.read(tmp_path / "reports/small.ipynb", 4).cells[-1].outputs] == ["42\n"] and "42" in (tmp_path / "reports/small.html").read_text()
    monkeypatch.setattr(sys, "argv", ["run_report.py", "small", "-p", "m", "41"])
    with pytest.raises(SystemExit, match="small has no parameter m"): run_report.main()
