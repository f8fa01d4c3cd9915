"""What a page does differently from its notebook: each rule on a small notebook, and no network in the pages' styles."""
import json
import re
import sys
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / ".ci"))
import make_api  # noqa: E402
import stage  # noqa: E402

FRONT = new_raw_cell("---\ndescription: A canvas, refined.\ntitle: 03 LIRA\n---")
EXPORTED = '#| code-fold: show\n#| code-summary: "Exported source"\n'


def html(text): return new_output("execute_result", {"text/html": text, "text/plain": "…"})


def staged(*cells, is_report=False, **metadata):
    nb = new_notebook(cells=[FRONT.copy(), *cells], metadata=metadata)
    stage.stage(nb, is_report)
    assert stage.problems(nb, "page") == []
    return nb


def test_the_promise_stands_under_the_title():
    assert staged(new_markdown_cell("text")).cells[1].source == "::: {.promise}\nA canvas, refined.\n:::"


def test_imports_and_helpers_are_folded_and_short_exports_shown():
    cells = [new_code_cell(EXPORTED + "import os\nfrom a import b"), new_code_cell("def _far(x):\n    return x"), new_code_cell(EXPORTED + "def near(x, *, y):\n    return x"),
             new_code_cell(EXPORTED + "class Far:\n" + "    a = 1\n" * 30), new_code_cell("import os\nprint(os)"), new_code_cell("%magic")]
    found = [(stage.directives(cell.source).get("code-fold"), stage.directives(cell.source).get("code-summary")) for cell in staged(*cells).cells[2:]]
    assert found == [("true", "Imports"), ("true", "Helper: _far(x)"), (None, None), ("true", "class Far"), (None, None), (None, None)]


def test_imports_that_follow_each_other_are_one_cell():
    cells = [new_code_cell(EXPORTED + "import os"), new_code_cell("import re"), new_code_cell("x = 1"), new_code_cell("import sys")]
    assert [stage.body(cell.source) for cell in staged(*cells).cells[2:]] == ["import os\nimport re", "x = 1", "import sys"]


def test_a_signature_is_shown_once():
    nb = staged(new_code_cell("#| echo: false\n#| output: asis\nshow_doc(near)"), new_code_cell(EXPORTED + "def near(x): pass"))
    assert not any("show_doc" in cell.source for cell in nb.cells) and "def near" in nb.cells[-1].source


def test_widgets_are_gone_and_what_stands_beside_them_stays():
    widget = new_output("display_data", {stage.WIDGET: {"model_id": "1"}, "text/plain": "bar"})
    nb = staged(new_code_cell("fit()", outputs=[widget, new_output("stream", name="stdout", text="done\n")]), widgets={"state": {}})
    assert [output.output_type for output in nb.cells[-1].outputs] == ["stream"] and "widgets" not in nb.metadata


def test_a_frame_has_words_for_names_and_a_dash_for_nothing():
    frame = '<style>x</style><table border="1" class="dataframe"><thead><tr><th></th><th>tokens_per_second</th></tr></thead><tbody><tr><th>a_b</th><td>NaN</td></tr><tr><th>c</th><td>12.50</td></tr></tbody></table>'
    shown = staged(new_code_cell("frame", outputs=[html(frame)])).cells[-1].outputs[0]["data"]["text/html"]
    assert "tokens per second" in shown and "a b" in shown and "<td>–</td>" in shown and "<td>12.50</td>" in shown and "style>" not in shown and shown.startswith('<div class="frame">')
    assert stage.reshape("<p>a_b NaN</p>") == "<p>a_b NaN</p>"


def table(rows, columns):
    head = "".join(f"<th>c{j}</th>" for j in range(columns))
    lines = "".join(f"<tr><th>r{i}</th>" + "".join(f"<td>{i}.{j}</td>" for j in range(columns)) + "</tr>" for i in range(rows))
    return f'<table class="dataframe"><thead><tr><th></th>{head}</tr></thead><tbody>{lines}</tbody></table>'


@pytest.mark.parametrize("rows, columns, turned", [(3, 12, True), (3, 8, False), (20, 12, False)])
def test_a_wide_and_short_frame_is_turned_round_and_keeps_every_figure(rows, columns, turned):
    shown = stage.reshape(table(rows, columns))
    assert ("<th>c0</th><td>0.0</td>" in shown) == turned and ("<th>r0</th><td>0.0</td>" in shown) != turned
    assert sorted(re.findall(r"<td>([\d.]+)</td>", shown)) == sorted(f"{i}.{j}" for i in range(rows) for j in range(columns))


def test_a_report_opens_with_its_verdict_and_figure_and_ends_in_how_it_was_run():
    figure = new_code_cell("#| label: fig-main\nplot()", outputs=[html("<p>drawn</p>")])
    told = new_markdown_cell("<!-- made: verdict_x -->\n\n<!-- figure: fig-main -->\n\n**Found.** @fig-main")
    cells = [told, new_markdown_cell("Words."), new_code_cell("seed = 1", metadata={"tags": ["parameters"]}), new_code_cell("import os"), new_code_cell("work()"), figure,
             new_code_cell("print(report)", outputs=[new_output("stream", name="stdout", text=json.dumps({"a": 1}) + "\n")])]
    nb = staged(*cells, is_report=True)
    order = [cell.source.splitlines()[-1] for cell in nb.cells[1:]]
    assert order == [":::", "**Found.** @fig-main", "plot()", "Words.", "work()", "print(report)", "</details>", "## How this was run", "seed = 1", "import os"]
    assert nb.cells[-4].source.startswith("<details>") and '{"a": 1}' in nb.cells[-4].source and not nb.cells[-5].outputs
    assert [stage.directives(cell.source)["code-fold"] for cell in (nb.cells[3], *nb.cells[-2:])] == ["true"] * 3


@pytest.mark.parametrize("cell, said", [
    (new_code_cell("x", outputs=[new_output("display_data", {"image/gif": "", "text/plain": ""})]), "which Quarto drops"),
    (new_code_cell("x", outputs=[html(table(1, 1).replace("c0", "c_0"))]), "raw column name 'c_0'"),
    (new_code_cell("x", outputs=[html(table(1, 1).replace("0.0", "NaN"))]), "NaN in it"),
    (new_code_cell("import os"), "imports unfolded"),
])
def test_what_a_page_must_not_have_is_found(cell, said):
    found = stage.problems(new_notebook(cells=[new_markdown_cell("::: {.promise}\nx\n:::"), cell]), "page")
    assert len(found) == 1 and said in found[0]
    assert "doesn't show its promise" in stage.problems(new_notebook(), "page")[0]


def test_styles_fetch_nothing_and_cut_nothing():
    for name in ("book.scss", "dark.scss", "styles.css"):
        assert not re.search(r"https?:|@import|url\(", (ROOT / "nbs" / name).read_text())
    rules = (ROOT / "nbs/styles.css").read_text()
    assert "$web-font-path: false" in (ROOT / "nbs/book.scss").read_text() and "overflow-wrap: anywhere" in rules and "white-space: pre-wrap" in rules


def test_inline_code_is_legible_on_the_dark_page():
    dark = (ROOT / "nbs/dark.scss").read_text()
    colour, ground = (re.search(rf"\${name}: #(\w{{6}})", dark)[1] for name in ("code-color", "code-bg"))
    assert f"color: #{colour};\n  background-color: #{ground};" in (ROOT / "nbs/styles.css").read_text()
    def luminance(code):
        parts = [int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        return sum(w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for w, c in zip((0.2126, 0.7152, 0.0722), parts))
    low, high = sorted((luminance(colour), luminance(ground)))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_pages_of_the_library_show_no_backslash_and_no_second_names():
    for path, text in make_api.pages().items():
        assert not re.search(r"`[^`\n]*\\\|[^`\n]*`", text), path.name
        assert "ChunkReader = " not in text, path.name
