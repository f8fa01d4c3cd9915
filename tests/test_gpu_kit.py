"""The GPU kit, tried without a GPU: what the archive holds, all phases in miniature, a run that goes on, and what is refused."""
import importlib
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / ".ci"))
import gpu  # noqa: E402
import tables  # noqa: E402

STORIES = "Once upon a time a red fox met a small blue bird by the old river and they were glad. " * 3


def kit(*words, root=ROOT, **env):
    return subprocess.run([sys.executable, root / ".ci/gpu.py", *map(str, words)], capture_output=True, text=True, env=os.environ | env)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    (folder / "stories.jsonl").write_text("".join(json.dumps({"text": f"{n} {STORIES}"}) + "\n" for n in range(40)))
    done = kit("pack", "--corpus", folder / "stories.jsonl", "--vocab_size", 300, "--length", 16, "--no_wheels", "--archive", folder / "kit.tar.xz")
    assert done.returncode == 0, done.stderr
    assert f"make -C {gpu.FOLDER} gpu" in done.stdout
    return folder / "kit.tar.xz"


@pytest.fixture(scope="module")
def unpacked(archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("machine")
    with tarfile.open(archive) as tar: tar.extractall(folder, filter="data")
    return folder / gpu.FOLDER


@pytest.fixture(scope="module")
def run(unpacked):
    done = kit("run", "--small", "--device", "cpu", "--seconds", 5, root=unpacked)
    assert done.returncode == 0, done.stderr[-3000:]
    return unpacked / "reports/gpu/report.json", done.stdout


def test_the_archive_has_all_that_a_run_needs_and_is_the_same_again(archive):
    with tarfile.open(archive) as tar: names = {name.removeprefix(f"{gpu.FOLDER}/") for name in tar.getnames()}
    assert {"COMMIT", "Makefile", ".ci/gpu.py", "shimmer/lira.py", "shimmer/canvases/tales/config.json", "tests/conftest.py", "data/stories.safetensors"} <= names
    assert any(name.startswith("data/tokenizer/") for name in names) and not any("__pycache__" in name or name.startswith("nbs/") for name in names)
    first = archive.read_bytes()
    gpu.pack(again := archive.with_name("again.tar.xz"), archive.parent / "pack/data", None)
    assert again.read_bytes() == first and len(first) < gpu.MOST_BYTES


def test_an_archive_that_is_too_large_is_refused_and_none_is_left(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="may have 0: take fewer stories"): gpu.pack(tmp_path / "kit.tar.xz", archive.parent / "pack/data", None)
    assert not list(tmp_path.iterdir())


def test_a_run_in_miniature(run):
    file, told = run
    report = json.loads(file.read_text())
    assert report["tests"]["failed"] == 0 and report["tests"].get("error", 0) == 0 and sum(report["tests"].values()) >= 2
    spent = {name: report["plan"]["updates"][name] * report[f"speed of {name}"]["gigaflop"] for name in ("GPT", "canvas", "blocks")}
    assert all(abs(each / report["plan"]["gigaflop"] - 1) < 0.1 for each in spent.values()), "equal operations"
    assert [(row["block length"], row["measure"]) for row in report["blocks"]["scores"]] == [(1, "exact"), (4, "bound"), (16, "bound"), (16, "bound")]
    for name in ("GPT", "canvas", "blocks"):
        assert report[name]["updates"] == pytest.approx(report["plan"]["updates"][name], rel=0.05) and 0 < report[f"speed of {name}"]["share of the ceiling"] < 1
        assert all(row["low"] <= row["bits per byte"] <= row["high"] for row in report[name]["scores"])
    assert len(report["writing"]) == 12 and all(row["tokens a second"] > 0 and row["calls"] <= 8 for row in report["writing"])
    assert report["settings"]["device"] and not report["settings"]["compiled"] and str(file) in told


def test_a_killed_run_goes_on_where_it_stopped(run, unpacked):
    file, _ = run
    before = json.loads(file.read_text())
    file.write_text(json.dumps({name: part for name, part in before.items() if name not in ("blocks", "writing")}))
    done = kit("run", "--small", "--device", "cpu", "--seconds", 5, root=unpacked)
    after = json.loads(file.read_text())
    assert done.returncode == 0
    for part in ("updates", "scores", "curve"): assert after["blocks"][part] == before["blocks"][part], "trained to the end before, and only scored again"
    assert {name: after[name] for name in before if name not in ("blocks", "writing")} == {name: before[name] for name in before if name not in ("blocks", "writing")} and len(after["writing"]) == 12


def test_what_is_refused(run, unpacked, tmp_path):
    file, _ = run
    before = file.read_bytes()
    for words, said in ((["run", "--device", "cpu"], "begun with another hidden_size"), (["run", "--data", tmp_path], "no stories.safetensors: run this from an archive"), (["pack", "--corpus", tmp_path / "none.txt"], "none.txt is no file"),
                        *([] if torch.cuda.is_available() else [(["run", "--small", "--device", "cuda", "--out", tmp_path], "'cuda' is asked for, and it is not available")])):
        done = kit(*words, root=unpacked)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1 and not done.stdout, done.stderr
    assert file.read_bytes() == before


def test_on_a_gpu_it_compiles_in_bf16(unpacked, tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.FULL, "scored", 4)
    monkeypatch.setattr("shimmer.devices.pick_device", lambda name: "cuda")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "A fake GPU")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    made = gpu.Run(unpacked / "data", tmp_path, None, False, 500.0)
    assert (made.compiles, made.precision, made.report["settings"]["device"]) == (True, "bf16", "A fake GPU")
    sizes = {name: sum(p.numel() for p in made.model(name).parameters()) for name in ("GPT", "canvas", "blocks")}
    assert all(10e6 < size < 13e6 for size in sizes.values()), sizes
    assert all(made.model(name).compiled_parts for name in sizes)


def test_weights_are_chosen_on_other_windows_than_are_scored(unpacked, tmp_path, monkeypatch):
    held = gpu.Run(unpacked / "data", tmp_path, "cpu", True, 5.0)
    there = load_file(unpacked / "data/stories.safetensors")["valid"].long()
    assert len(held.valid) == len(held.sizes) == gpu.SMALL["scored"] and torch.equal(torch.cat([held.valid, held.other]), there[: 4 + 64]) and len(held.other)
    monkeypatch.setitem(gpu.SMALL, "scored", len(held.valid) + len(held.other))
    with pytest.raises(ValueError, match="pack more text or shorter windows"): gpu.Run(unpacked / "data", tmp_path / "more", "cpu", True, 5.0)


def test_a_wheel_stands_in_for_what_is_not_installed(tmp_path, monkeypatch):
    info = "left_at_home-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "left_at_home-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("left_at_home.py", "answer = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: left-at-home\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    gpu.use_wheels(tmp_path)
    assert importlib.import_module("left_at_home").answer == 42 and str(tmp_path / "unpacked") in os.environ["PYTHONPATH"]


def test_the_page_of_results_shows_the_run_or_says_how_to_get_one(run, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "KEPT", tmp_path)
    assert "make gpu-pack" in tables.gpu_table()
    (tmp_path / "gpu.json").write_bytes(run[0].read_bytes())
    monkeypatch.setattr(tables, "report", lambda name: json.loads((tmp_path / f"{name}.json").read_text()))
    shown = tables.gpu_table()
    assert shown.count("\n| ") >= 2 + 6 + 12 and "| blocks of 4 | bound |" in shown and "| GPT, cached | 1 |" in shown
