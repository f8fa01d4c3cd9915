"""The canvas that comes with the package: its name is enough, it writes right tales, and its card says what was measured."""
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import shimmer.loading
from shimmer import cli
from shimmer.checkpoints import load_checkpoint
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.loading import checkpoint_directory, shipped_canvases
from shimmer.models import load_model
from shimmer.samplers import generate_topk
from shimmer.tales import Tales

ROOT = Path(__file__).resolve().parent.parent
TALES = ROOT / "shimmer" / "canvases" / "tales"


@pytest.fixture
def script(monkeypatch):
    "The module .ci/make_canvas.py."
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    spec = importlib.util.spec_from_file_location("make_canvas", ROOT / ".ci" / "make_canvas.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "An empty working directory, and a Hub that must not be asked."
    def asked(*_, **__): raise AssertionError("the Hub was asked")
    monkeypatch.setattr(shimmer.loading, "hf_hub_download", asked)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_name_is_enough(elsewhere):
    model, tokenizer = load_checkpoint("tales")
    for again in (load_model("tales"), LatentCanvasModel.from_pretrained("tales")):
        assert type(again) is LatentCanvasModel and not again.training
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert tokenizer.vocab_size == model.config.vocab_size and Path(checkpoint_directory("tales")) == shipped_canvases()["tales"]


def test_a_checkpoint_of_that_name_goes_first_and_another_folder_does_not(elsewhere):
    (elsewhere / "tales").mkdir()
    assert load_model("tales").config.hidden_size == 128
    own = LatentCanvasModel(LatentCanvasConfig(vocab_size=139, hidden_size=16, num_layers=1, num_heads=2, mask_token_id=139, pad_token_id=138, max_seq_len=72))
    own.save_pretrained(elsewhere / "tales")
    assert load_model("tales").config.hidden_size == 16
    shutil.copy(TALES / "shimmer_tokenizer.json", elsewhere / "tales")
    assert load_checkpoint("tales")[0].config.hidden_size == 16


@pytest.mark.parametrize("load", [load_model, load_checkpoint, LatentCanvasModel.from_pretrained])
def test_a_name_that_is_none_is_refused_with_those_there_are(elsewhere, load):
    with pytest.raises(FileNotFoundError, match="tails.*tales"): load("tails")


def test_it_writes_right_tales_with_the_default_settings(elsewhere):
    model, tokenizer = load_checkpoint("tales")
    texts = generate_topk(model, [tokenizer.encode("Once upon a time")] * 24, eos_token_id=tokenizer.eos_token_id).texts(tokenizer)
    assert len(set(texts)) > 20 and sum(map(bool, map(Tales().check, texts))) >= 22


def test_the_plain_command_tells_a_tale(elsewhere, capsys):
    assert cli.main(["generate", "--prompt", "Once upon a time"]) == 0
    assert Tales().check(capsys.readouterr().out.strip())


def test_it_can_be_evaluated_and_described_by_name(elsewhere, capsys):
    assert cli.main("evaluate --checkpoint tales --num_texts 4 --num_ordered 1 --draws 1 --num_written 2 --output few.json".split()) == 0
    assert json.loads((elsewhere / "few.json").read_text())["corpus"] == "tales"
    assert cli.main("info --checkpoint tales".split()) == 0
    assert "471,936" in capsys.readouterr().out
    assert cli.main(["info"]) == 0 and "tales" in capsys.readouterr().out


def test_its_card_is_in_step_with_its_figures(script, tmp_path, monkeypatch):
    assert script.main(check=True) == 0
    changed = Path(shutil.copytree(TALES, tmp_path / "shimmer" / "canvases" / "tales"))
    figures = json.loads((changed / "evaluation.json").read_text())
    figures["checkpoints"][0]["nats_per_canvas"] += 1
    (changed / "evaluation.json").write_text(json.dumps(figures))
    monkeypatch.setattr(script, "CANVAS", changed)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    assert script.main(check=True) == 1


def test_its_figures_are_of_this_model(script):
    figures = json.loads((TALES / "evaluation.json").read_text())
    measured, = figures["checkpoints"]
    assert measured["parameters"] == sum(p.numel() for p in load_model("tales").parameters())
    assert measured["nats_per_canvas"] > measured["entropy_nats_per_tale"] - 1 and [way["flags"] for way in figures["ways"]] == list(script.WAYS)
    assert "--progressive" in (TALES / "README.md").read_text()


def test_a_wheel_holds_it_and_it_is_small(tmp_path):
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path], cwd=ROOT, check=True, capture_output=True)
    built = {path.relative_to(tmp_path / "shimmer") for path in (tmp_path / "shimmer").rglob("*") if path.is_file() and path.suffix != ".py"}
    assert built == {path.relative_to(ROOT / "shimmer") for path in [*TALES.iterdir(), *(ROOT / "shimmer/assets").iterdir(), *(ROOT / "shimmer").glob("*.mplstyle"), ROOT / "shimmer/py.typed"]}
    assert sum(path.stat().st_size for path in TALES.iterdir()) < 8e6
