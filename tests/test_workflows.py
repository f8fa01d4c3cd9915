"""The workflows ask for no more than they need, run what is pinned, and run all of it; the lowest versions that one of them tests."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
EVALUATIONS = sorted(path.stem for path in (ROOT / "nbs/evals").glob("*.ipynb"))
sys.path.insert(0, str(ROOT / ".ci"))
import floors  # noqa: E402


def workflow(name):
    "A workflow as GitHub reads it."
    return yaml.safe_load((ROOT / f".github/workflows/{name}.yml").read_text())


def run(name, job, having):
    "The one command of a job that has a word in it."
    [found] = [step["run"] for step in workflow(name)["jobs"][job]["steps"] if having in step.get("run", "")]
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_permissions_are_few_and_said(path):
    told = yaml.safe_load(path.read_text())
    assert told["permissions"] == {"contents": "read"}
    more = {name: job["permissions"] for name, job in told["jobs"].items() if "permissions" in job}
    assert more == ({"publish": {"pages": "write", "id-token": "write"}} if path.stem == "docs" else {})


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_to_a_commit_and_its_version_is_told(path):
    uses = [line.strip() for line in path.read_text().splitlines() if "uses:" in line]
    assert len(uses) == sum("uses" in step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"])
    for line in uses: assert re.fullmatch(r"(- )?uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_has_one_version_everywhere():
    pins = {pin for path in WORKFLOWS for pin in re.findall(r"uses: (\S+@\S+ # \S+)", path.read_text())}
    assert len({pin.split("@")[0] for pin in pins}) == len(pins)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_torch_comes_without_cuda(path):
    assert yaml.safe_load(path.read_text())["env"]["PIP_EXTRA_INDEX_URL"].endswith("/whl/cpu")


def test_the_tests_run_on_every_python_that_is_supported():
    strategy = workflow("test")["jobs"]["test"]["strategy"]
    assert strategy == {"fail-fast": False, "matrix": {"python": ["3.11", "3.12", "3.13", "3.14"]}}
    assert f"min_python = {strategy['matrix']['python'][0]}\n" in (ROOT / "settings.ini").read_text()


@pytest.mark.parametrize("asked, listed", [("", EVALUATIONS), ("speed quickstart", ["speed", "quickstart"])])
def test_reports_runs_every_evaluation_in_a_job_of_its_own(tmp_path, asked, listed):
    env = {**os.environ, "ASKED": asked, "GITHUB_OUTPUT": str(tmp_path / "output")}
    subprocess.run(["bash", "-euc", run("reports", "list", "GITHUB_OUTPUT")], cwd=ROOT, check=True, env=env)
    name, _, value = (tmp_path / "output").read_text().partition("=")
    assert (name, json.loads(value)) == ("reports", listed) and len(EVALUATIONS) == 16
    report = workflow("reports")["jobs"]["report"]
    assert report["strategy"] == {"fail-fast": False, "matrix": {"report": "${{ fromJSON(needs.list.outputs.reports) }}"}}
    assert (report["env"], report["needs"]) == ({"REPORT": "${{ matrix.report }}"}, "list")
    runs = [step["run"] for step in report["steps"] if "run" in step]
    assert runs == ['make "report-$REPORT"', 'make compare NAME="$REPORT"']


def test_commands_take_no_text_from_outside():
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            assert not any("${{" in step.get("run", "") for step in job["steps"]), path.name


def test_the_floors_are_what_settings_asks_for():
    asked = floors.floors("torch>=2.13 huggingface_hub>=1.3 tqdm>=4.66.3")
    assert asked == ["torch==2.13", "huggingface_hub==1.3", "tqdm==4.66.3"]
    told = subprocess.run([sys.executable, ROOT / ".ci/floors.py"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"torch==2.13", "numpy==1.26"} < set(told) and len(told) == len({line.split("==")[0] for line in told}) == 15


@pytest.mark.parametrize("odd", ["numpy", "numpy==1.26", "numpy>=1.26,<3", "numpy>1.26", "numpy>=1.26;python_version<'3.12'"])
def test_a_requirement_without_a_floor_is_refused(odd):
    with pytest.raises(ValueError, match="a requirement is a name and a floor"): floors.floors(f"torch>=2.13 {odd}")


def test_the_floors_run_all_tests_of_the_library_and_no_others():
    chosen = re.search(r"\$\((grep .*)\)", run("test", "floors", "pytest -q"))[1]
    files = subprocess.run(["bash", "-euc", chosen], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    modules = {path.stem for path in (ROOT / "shimmer").glob("[!_]*.py")}
    others = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")} - {Path(name).stem.removeprefix("test_") for name in files}
    assert not others & modules and {"book", "evals", "run_report", "workflows", "wheel"} <= others


def test_the_build_is_declared():
    import tomllib
    assert tomllib.loads((ROOT / "pyproject.toml").read_text()) == {"build-system": {"requires": ["setuptools>=77"], "build-backend": "setuptools.build_meta"}}
