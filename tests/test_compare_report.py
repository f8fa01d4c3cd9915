"""A report made here against the kept one: what may differ, by how much, and what is said of it."""
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / ".ci"))
import compare_report  # noqa: E402
from compare_report import IGNORED, OTHERWISE, RULES, SAME, agree, compare, leaves, relative, rule_of, share_of, within  # noqa: E402

KEPT = sorted(compare_report.RESULTS.glob("*.json"))


def differing(name, kept, new):
    "The paths that differ."
    return [path for path, *_ in compare(name, kept, new)[0]]


@pytest.mark.parametrize("rule, near, far", [(SAME, 2.0 + 1e-10, 2.001), (within(0.1), 2.09, 2.11), (within(0.1), 1.91, 1.89), (relative(0.1), 2.19, 2.21), (relative(0.1), 1.81, 1.79), (OTHERWISE, 2.09, 2.11)])
def test_each_kind_of_rule(rule, near, far):
    assert agree(rule, 2.0, near) and not agree(rule, 2.0, far) and agree(rule, 2.0, 2) and rule.said


@pytest.mark.parametrize("kept, new", [(3, 4), ("bf16", "fp32"), (None, 0.0), (0.0, None), (True, 1), (True, False), (1.0, True), ("1.0", 1.0)])
def test_counts_words_nulls_and_truths_are_the_same_or_differ(kept, new):
    assert not agree(within(10), kept, new) and agree(within(10), kept, kept)


def test_a_share_may_differ_by_what_its_texts_allow():
    assert agree(share_of(48), 0.5, 0.8) and not agree(share_of(48), 0.5, 0.81)
    assert agree(share_of(1000), 0.5, 0.56) and not agree(share_of(1000), 0.5, 0.57)


@pytest.mark.parametrize("path, rule", [
    ("quickstart/made/date", IGNORED), ("speed/steps/demo/seconds", IGNORED), ("lira_options/runs/plain, seed 0/ms_per_step", IGNORED), ("claims/claims/LIRA, coherence rate/fair", IGNORED), ("gate/written/mixture, own policy, seed 0/stops/canvas full", IGNORED),
    ("gate/settings/lr", SAME), ("curriculum/teraflop", SAME), ("quickstart/entropy", SAME), ("epochs/runs/GPT, epochs 4, seed 0/curve/3/0", SAME),
    ("epochs/runs/GPT, epochs 4, seed 0/curve/3/1", relative(0.3)), ("quickstart/samplers/surest first, 20 calls/right", share_of(48)), ("lira_vs_gpt/written/tales, GPT/entropy", within(0.3)), ("refinement_steps/results/K = 1, equal data/above the truth", within(0.6)),
    ("quickstart/confidence_gap", within(0.1)), ("something/else", OTHERWISE),
])
def test_the_rule_of_a_path(path, rule):
    assert rule_of(path).said == rule.said


def test_every_rule_is_of_use():
    "Each pattern is the first that fits some value of a kept report."
    paths = [path for kept in KEPT for path, _ in leaves(json.loads(kept.read_text()), kept.stem)]
    first = {next((pattern for pattern, _ in RULES if compare_report.fnmatchcase(path, pattern)), None) for path in paths}
    assert {pattern for pattern, _ in RULES} <= first


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_reports_agree_with_themselves_and_not_with_others(path):
    kept = json.loads(path.read_text())
    differ, agreeing = compare(path.stem, kept, kept)
    assert differ == [] and agreeing > 20
    changed = json.loads(path.read_text(), parse_int=lambda n: int(n) + 1)
    assert len(compare(path.stem, kept, changed)[0]) > 2


def test_counts_are_exact_times_are_free_and_the_rest_is_near():
    kept = dict(parameters=471936, training_seconds=200.0, nelbo=20.9, gap_to_truth=0.54, made=dict(date="2026-11-26"))
    assert differing("quickstart", kept, {**kept, "training_seconds": 900.0, "nelbo": 21.3}) == []
    assert differing("quickstart", kept, {**kept, "parameters": 471937, "nelbo": 22.0}) == ["quickstart/parameters", "quickstart/nelbo"]


def test_what_one_side_lacks_differs_unless_it_is_ignored():
    kept, new = dict(updates=3, made=dict(date="2026-11-26"), reasons=dict(toy=1)), dict(seed=0, reasons=dict(pronoun=2))
    assert compare("quickstart", kept, new)[0] == [("quickstart/updates", 3, "–", "the same"), ("quickstart/seed", "–", 0, "the same")]


def test_rows_are_known_by_their_names_and_counted_where_names_repeat():
    rows = [dict(model="GPT", seed=0, value=1.0), dict(model="GPT", seed=1, value=2.0), dict(model="GPT", seed=1, value=3.0), [4, 5.5]]
    assert [path for path, _ in leaves(rows, "r") if not path.endswith(("model", "seed"))] == ["r/GPT, seed 0/value", "r/GPT, seed 1/value", "r/GPT, seed 1 (2)/value", "r/3/0", "r/3/1"]
    assert differing("x", rows[:2], rows[1::-1]) == []


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project with the kept reports quickstart and speed; returns what writes a report made in it."
    for name, value in (("ROOT", tmp_path), ("RESULTS", tmp_path / "kept")): monkeypatch.setattr(compare_report, name, value)
    (tmp_path / "kept").mkdir()
    for name in ("quickstart", "speed"): (tmp_path / f"kept/{name}.json").write_text(json.dumps(dict(parameters=5, nelbo=20.0, way="a | b", seconds=1.0)))
    def make(name, **fields):
        (tmp_path / "reports" / name).mkdir(parents=True)
        (tmp_path / "reports" / name / "report.json").write_text(json.dumps(dict(parameters=5, nelbo=20.0, way="a | b", seconds=2.0) | fields))
    return make


def run(monkeypatch, *names):
    "What the script returns for these names."
    monkeypatch.setattr(sys, "argv", ["compare_report.py", *names])
    return compare_report.main()


def test_agreement_is_said_and_returns_0(project, monkeypatch, capsys):
    project("quickstart", nelbo=20.5)
    assert run(monkeypatch, "quickstart") == run(monkeypatch) == 0
    assert capsys.readouterr().out == "quickstart: 3 values agree within their tolerances\n" * 2


def test_differences_are_a_table_and_return_1(project, monkeypatch, capsys):
    project("quickstart", nelbo=21.0, way="c | d", parameters=6)
    project("speed")
    assert run(monkeypatch) == 1
    assert capsys.readouterr().out.splitlines() == [
        "| path | kept | new | allowed |", "| --- | --- | --- | --- |", "| quickstart/parameters | 5 | 6 | the same |", "| quickstart/nelbo | 20 | 21 | ± 0.6 |", "| quickstart/way | a ¦ b | c ¦ d | the same |", "",
        "quickstart: 3 values differ, 0 values agree within their tolerances", "speed: 3 values agree within their tolerances",
    ]


def test_one_difference_is_one(project, monkeypatch, capsys):
    project("speed", seed=0)
    assert run(monkeypatch, "speed") == 1 and "speed: 1 value differs, 3 values agree within" in capsys.readouterr().out


def test_a_report_that_is_missing_is_named_with_its_mend(project, monkeypatch):
    for names, said in (((), "reports/ holds no report: run `make report-NAME`"), (["speed"], "reports/speed/report.json does not exist: run `make report-speed`"), (["sped"], "sped has no kept report: choose quickstart, speed")):
        with pytest.raises(SystemExit, match=said): run(monkeypatch, *names)
