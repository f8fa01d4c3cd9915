"""The book as text is sound, what is made of it is in step, and what it tells others to do works."""
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / ".ci"))
import book  # noqa: E402
import check_book  # noqa: E402
import findings  # noqa: E402
import guard  # noqa: E402
import make_api  # noqa: E402
import make_pages  # noqa: E402
import make_readme  # noqa: E402
import tables  # noqa: E402


@pytest.mark.parametrize("check", check_book.CHECKS, ids=lambda check: check.__name__)
def test_the_text_is_sound(check):
    assert check() == []


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "A little book to break."
    nbs = tmp_path / "nbs"
    (nbs / "api").mkdir(parents=True)
    (nbs / "evals").mkdir()
    (nbs / "a.qmd").write_text("# A {#a}\n\n## The first place\n\n[b](b.qmd#b) [@known] ![](x.png)\n")
    (nbs / "b.qmd").write_text("# B {#b}\n\n[here](#b) [there](a.qmd#the-first-place)\n\n```\n[no](link.md)\n```\n")
    (nbs / "references.bib").write_text("@misc{known,\n  title = {Known},\n  author = {One},\n  year = {2026}\n}\n")
    (nbs / "x.png").write_bytes(b"")
    config = dict(project=dict(type="book"), book=dict(title="T", chapters=["a.qmd", dict(part="P", chapters=["b.qmd"])]))
    (tmp_path / "_quarto.yml").write_text(yaml.safe_dump(config))
    for module in (book, check_book):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "NBS", nbs)
    check_book.markdown.cache_clear(), check_book.anchors.cache_clear()
    yield nbs
    check_book.markdown.cache_clear(), check_book.anchors.cache_clear()


def test_a_sound_book_passes(elsewhere):
    for check in (check_book.check_contents, check_book.check_links, check_book.check_references): assert check() == []


@pytest.mark.parametrize("check, file, text, said", [
    ("check_links", "b.qmd", "[x](gone.qmd)", "leads to no file"),
    ("check_links", "b.qmd", "[x](a.qmd#gone)", "leads to no place"),
    ("check_links", "b.qmd", "[x](#gone)", "leads to no place"),
    ("check_references", "b.qmd", "see @unknown", "neither in references.bib nor a label"),
    ("check_references", "a.qmd", "nothing is cited", "which nothing cites"),
    ("check_contents", "c.qmd", "# C", "in no chapter"),
    ("check_names", "b.qmd", "as in chapter 03, where", "link it by its name"),
    ("check_names", "b.qmd", "see [07](a.qmd)", "link it by its name"),
    ("check_names", "b.qmd", "see [Chapter 11](a.qmd)", "link it by its name"),
])
def test_what_is_broken_is_found(elsewhere, check, file, text, said):
    (elsewhere / file).write_text(f"# T {{#b}}\n\n## The first place\n\n{text}\n")
    assert any(said in problem for problem in getattr(check_book, check)())


def test_a_chapter_that_uses_what_a_later_one_builds_is_found(elsewhere):
    import nbformat
    cell = nbformat.v4.new_code_cell
    for name, source in (("00_first", "from shimmer.second import x"), ("01_second", "from shimmer.first import y\nfrom shimmer.aside import z"), ("appendix_aside", "from shimmer.second import x")):
        nbformat.write(nbformat.v4.new_notebook(cells=[cell(source)]), elsewhere / f"{name}.ipynb")
    problem, = check_book.check_order()
    assert problem.startswith("nbs/00_first.ipynb: it uses shimmer.second, which 01_second.ipynb builds later")


def test_contents_named_twice_or_unknown_are_found(elsewhere):
    config = dict(project=dict(type="book"), book=dict(titel="T", chapters=["a.qmd", "a.qmd", "gone.qmd", "b.qmd"]))
    (elsewhere.parent / "_quarto.yml").write_text(yaml.safe_dump(config))
    assert check_book.check_contents() == ["_quarto.yml has the unknown book key 'titel'", "_quarto.yml names a.qmd 2 times", "_quarto.yml names gone.qmd, which does not exist"]


@pytest.mark.parametrize("heading, place", [("Top-k: so many a call", "top-k-so-many-a-call"), ("`Tales`", "tales"), ("1/t, and *why*", "t-and-why"), ("Where {#there}", "where"), ("A [link](x.md) in it", "a-link-in-it")])
def test_anchors_are_pandocs(heading, place):
    assert check_book.slug(heading) == place


def test_options_of_the_pages_are_quartos():
    quarto_keys = pytest.importorskip("smalldocs.quarto_keys")
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    assert set(config["format"]["html"]) <= quarto_keys.QUARTO_PAGE_OPTIONS | {"code-overflow", "google-scholar"}
    assert config["book"].get("repo-url") == (book.settings()["git_url"] if book.published() else None)


def test_what_is_made_is_in_step():
    assert make_pages.main(check=True) == 0 and make_readme.main(check=True) == 0


def test_a_changed_report_is_out_of_step(tmp_path, monkeypatch, capsys):
    for path in book.RESULTS.glob("*.json"): (tmp_path / path.name).write_bytes(path.read_bytes())
    changed = json.loads((tmp_path / "quickstart.json").read_text())
    changed["gap_to_truth"] += 0.5
    (tmp_path / "quickstart.json").write_text(json.dumps(changed))
    monkeypatch.setattr(book, "RESULTS", tmp_path)
    assert make_pages.main(check=True) == 1
    assert "nbs/index.ipynb is not what reports, modules and pages make: run `make pages`" in capsys.readouterr().err


@pytest.mark.parametrize("path, said", [(("gone",), "has no gone"), (("samplers", "gone"), "has no samplers → gone"), (("samplers", dict(a=1)), "0 rows fit")])
def test_a_figure_that_is_gone_is_refused(path, said):
    with pytest.raises(ValueError, match=said): tables.find("quickstart", path)


def test_a_report_that_is_gone_is_refused():
    with pytest.raises(FileNotFoundError, match="make sync NB=evals/gone"): tables.find("gone", ("x",))


def test_a_claim_without_a_verdict_is_refused(monkeypatch):
    rows = book.report("claims")["claims"]
    monkeypatch.setattr(tables, "report", lambda name: {"claims": [{**rows[0], "verdict": "maybe"}]})
    with pytest.raises(ValueError, match="has the verdict 'maybe'"): tables.claims_page()


def test_every_result_says_when_it_was_measured():
    for row in tables.RESULTS:
        made = book.report(row.report)["made"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", made["date"]) and re.fullmatch(r"[0-9a-f]{7,40}", made["commit"])


def test_intervals_hold_their_figures():
    for row in tables.RESULTS:
        if row.low and row.high != ("±",): assert tables.find(row.report, row.low) <= tables.find(row.report, row.path) <= tables.find(row.report, row.high), row.what


def test_every_export_is_on_its_page():
    for path, text in make_api.pages().items():
        module = make_api.Module(ROOT / "shimmer" / f"{path.stem}.py")
        for node in module.exported():
            assert f"{{#{make_api.defined(node)[0]}}}" in text, (path.stem, make_api.defined(node))


def test_no_module_of_the_library_is_longer_than_450_lines():
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (book.ROOT / "shimmer").glob("[!_]*.py")}
    assert len(lines) > 30 and not {name: n for name, n in lines.items() if n > 450}


def test_no_line_of_the_library_is_longer_than_100_columns():
    for path in sorted((ROOT / "shimmer").glob("*.py")):
        if path.stem == "_modidx": continue
        lines = path.read_text(encoding="utf-8").splitlines()
        ours = next((i for i, line in enumerate(lines) if line.startswith("# %% ../nbs/")), 0)  # above it stands what nbdev writes
        assert not [f"{path.name}:{i + 1}" for i, line in enumerate(lines) if i > ours and len(line) > 100]


def test_a_page_of_the_library_says_what_the_module_says():
    text = make_api.page(ROOT / "shimmer/samplers.py")
    assert "| `temperature` | `float` | `1.0` | of the drawn tokens; 0 takes the likeliest |" in text
    assert "check_canvas(config, canvas, num_steps, temperature)" in text
    assert "refine(\n    model,\n    canvas,\n    policy,\n    num_steps,\n    temperature=1.0,\n    seed=0,\n    fixed=None,\n    eos_token_id=None,\n    record=True,\n)" in text
    line = int(re.search(r"(?:samplers\.py#L|Source: line )(\d+)", text.partition("{#refine}")[2])[1])
    assert (ROOT / "shimmer/samplers.py").read_text().splitlines()[line - 1] == "def refine("


def test_no_figure_is_typed_where_reports_are_told_of():
    cells = [c.source for c in book.read(book.NBS / "index.ipynb").cells if c.cell_type == "markdown" and not c.source.startswith("<!-- made:")]
    typed = [check_book.markdown(book.NBS / name) for name in ("results.qmd", "claims.qmd", "architectures.qmd", "glossary.qmd", "changelog.qmd")]
    for text in (*cells, *(re.sub(r"<!-- made: .*?<!-- end -->", "", t, flags=re.DOTALL) for t in typed)):
        told = re.sub(r"Python 3\.11(?: to 3\.14)?|0\.1\.0|\]\([^)]*\)|95%|80%|temperature 1\b", "", book.prose(text))
        assert not re.findall(r"\d+\.\d+|\d ?%|\d+ (?:nats|bits|minutes|seconds)", told), told


def settings_with(monkeypatch, published):
    settings = book.settings() | {"published": published}
    monkeypatch.setattr(book, "settings", lambda: settings)
    monkeypatch.setattr(guard, "settings", lambda: settings)
    return settings


def test_links_to_colab_lead_to_files_once_the_book_is_published(monkeypatch):
    s = settings_with(monkeypatch, "True")
    colab = re.findall(rf"https://colab\.research\.google\.com/github/{s['user']}/{s['repo']}/blob/{s['branch']}/([^)]+)\)", tables.map_table())
    assert list(map(unquote, colab)) == [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))]
    assert f"git+{s['git_url']}@{s['branch']}" in guard.guard() and book.source_url("a b", 3) == f"{s['git_url']}/blob/{s['branch']}/a%20b#L3"
    assert (ROOT / ".binder/requirements.txt").read_text().splitlines()[0] == "-c ../constraints.txt"


def test_nothing_links_to_an_address_that_is_not_the_books(monkeypatch):
    s = settings_with(monkeypatch, "False")
    assert "colab.research" not in tables.map_table()
    assert "no public address" in guard.guard() and "git+" not in guard.guard() and book.source_url("x") is None
    if book.published(): return
    shown = [*(ROOT / "nbs").glob("*.qmd"), *(ROOT / "nbs/api").glob("*.qmd"), *book.notebooks(), ROOT / "README.md", ROOT / "CITATION.cff", ROOT / "_quarto.yml"]
    assert [path.name for path in shown if s["git_url"] in path.read_text()] == []


def test_every_chapter_is_on_the_map_in_eight_words(monkeypatch):
    assert all(file in tables.map_table() for file in tables.IN_SHORT)
    monkeypatch.setitem(tables.IN_SHORT, "10_lira.ipynb", "one two three four five six seven eight nine")
    with pytest.raises(ValueError, match="one to eight words"): tables.map_table()


def test_a_report_opens_with_what_it_found():
    assert findings.FINDINGS.keys() == findings.FIGURES.keys() == {path.stem for path in (ROOT / "nbs/evals").glob("*.ipynb")}
    for name, figure in findings.FIGURES.items():
        cells = book.read(book.NBS / "evals" / f"{name}.ipynb").cells
        assert cells[1].source == make_pages.block(f"verdict_{name}") and re.search(r"\*\*.+\*\*", cells[1].source)
        assert any(f"#| label: {figure}\n" in cell.source for cell in cells), figure
        assert re.search(r"\d", cells[1].source)


def test_a_finding_says_all_columns_and_follows_its_report(monkeypatch):
    held = book.report("gate")
    assert all(word in findings.gate() for word in ("as described", "keep-the-best", "77% and 38%", "98.6%", "43.8%", "LIRA at most", "GPT"))
    rows = [row | {"right": 0.111} if (row["model"], row["way"]) == ("as described", "keep the best") else row for row in held["results"]]
    for module in (findings, tables): monkeypatch.setattr(module, "report", lambda name: held | {"results": rows})
    assert "11.1% as described" in findings.gate()


def test_the_front_page_is_short_and_says_its_results_in_six_sentences():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 130
    assert len(re.findall(r"^\d\. \*\*", readme, re.MULTILINE)) == 6 == len(findings.SIX)
    for word in ("settled", "both tuned"): assert word not in readme


def test_the_chapter_on_chunks_was_run_on_tiny_shakespeare():
    printed = "\n".join(output.get("text", "") for cell in book.read(book.NBS / "25_chunk_trm.ipynb").cells if cell.cell_type == "code" for output in cell.outputs)
    assert "tinyshakespeare: 1,003,854 characters to train on" in printed


def test_every_chapter_has_the_guard():
    assert guard.missing() == []


def test_citation_and_settings_agree():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    s = book.settings()
    assert (cff["version"], cff.get("repository-code"), cff["license"].lower()) == (s["version"], s["git_url"] if book.published() else None, s["license"])
    assert f"## {s['version']}" in (ROOT / "nbs/changelog.qmd").read_text()


def test_contributing_works(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "nbs/contributing.qmd").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6 and all(len(block.splitlines()) < 30 for block in blocks)  # own policy, own model, own objective
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_workflows_run_targets_that_exist():
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text())["jobs"]
        runs = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
        assert set(re.findall(r"\bmake ([a-z][a-z-]*)", runs)) <= targets, path.name


def test_the_readme_keeps_nothing_that_only_quarto_reads():
    prose = book.prose((ROOT / "README.md").read_text())
    assert not re.findall(r"\{[#.]|:::|<!-- made|\[@|@fig", prose)


def test_the_readme_names_what_exists():
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in (ROOT / "README.md", ROOT / ".github/CONTRIBUTING.md"):
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.MULTILINE))
        assert named and named - {"report-speed"} <= targets, path.name


def test_flags_in_the_readme_are_the_commands():
    shell = "".join(re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    lines = [line.split() for line in shell.splitlines() if line.startswith("shimmer ")]
    assert lines
    for _, command, *rest in lines:
        told = subprocess.run([sys.executable, "-m", "shimmer.cli", command, "--help"], capture_output=True, text=True).stdout
        assert told and all(word in told for word in rest if word.startswith("--")), (command, rest)


def test_no_output_names_a_path_of_the_machine_it_was_made_on():
    for path in book.notebooks():
        for cell in book.read(path).cells:
            if cell.cell_type != "code": continue
            told = "".join(str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) for output in cell.outputs)
            assert "site-packages" not in told and str(ROOT) not in told and not any(output.get("name") == "stderr" for output in cell.outputs), path.name
