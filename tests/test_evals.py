"""The evaluation notebooks run from end to end with small parameters, and the JSON they write says what it should."""
import ast
import json
from pathlib import Path

import papermill
import pytest

ROOT = Path(__file__).parent.parent
SMALL = dict(
    quickstart=dict(train_tales=1600, batch_size=16, hidden_size=32, num_layers=1, num_heads=2, compile_blocks=False, judged_tales=4, valid_tales=16, valid_draws=4),
    speed=dict(small=True, repeats=1, encode_megabytes=0.02),
    lira_options=dict(steps=3, seeds=[0, 1], batch_size=4, hidden_size=16, num_layers=1, num_heads=2, valid_tales=8, draws=2),
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    held = {}
    def run(name):
        if name not in held:
            out = tmp_path_factory.mktemp(name)
            papermill.execute_notebook(ROOT / f"nbs/evals/{name}.ipynb", out / f"{name}.ipynb", parameters={**SMALL[name], "out_dir": str(out)},
                                       kernel_name="python3", cwd=ROOT, progress_bar=False)
            held[name] = out, json.loads((out / "report.json").read_text())
        return held[name]
    return run


def test_every_evaluation_is_tested():
    assert {path.stem for path in (ROOT / "nbs/evals").glob("*.ipynb")} == set(SMALL)


def test_quickstart(report):
    out, figures = report("quickstart")
    assert figures["nelbo"] > figures["entropy"] > 20
    assert 0 < figures["confidence_right"] < 1 and figures["updates"] == 100
    for row in figures["samplers"].values():
        assert 0 <= row["right"] <= 1 and row["calls"] <= 2 * 72
    for name in ("checkpoint/model.safetensors", "checkpoint/log.jsonl", "generation.gif", "generation.html"):
        assert (out / name).stat().st_size > 100


def test_speed(report):
    _, figures = report("speed")
    assert {row["K"] for row in figures["steps"]} == {1, 2, 4}
    assert all(row["gigaflop"] > 0 and row["share_of_ceiling"] > 0 for row in figures["steps"])
    assert len(figures["samplers"]) == 4 and figures["memory"][1]["megabytes_of_text"] > figures["memory"][0]["megabytes_of_text"]


def test_lira_options(report):
    _, figures = report("lira_options")
    assert {row["seed"] for row in figures["runs"]} == {0, 1}
    assert all(row["nelbo"] > 0 and row["steps"] == 3 for row in figures["runs"])


def test_the_library_needs_no_notebook_tools():
    for path in (ROOT / "shimmer").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"nbdev", "fastcore", "execnb", "IPython", "papermill"}, path
