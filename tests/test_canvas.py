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
from shimmer.puzzles import Sudoku, part, sample_puzzles, solve
from shimmer.samplers import generate_topk, refine
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


@pytest.mark.parametrize("name", ["tales", "sudoku-6"])
def test_its_card_is_in_step_with_its_figures(name, script, tmp_path, monkeypatch):
    assert script.main(check=True) == 0
    changed = Path(shutil.copytree(TALES.parent, tmp_path / "shimmer" / "canvases")) / name
    figures = json.loads((changed / "evaluation.json").read_text())
    figures["checkpoints"][0]["nats_per_canvas"] += 1
    (changed / "evaluation.json").write_text(json.dumps(figures))
    monkeypatch.setattr(script, "CANVASES", changed.parent)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    assert script.main(check=True) == 1


def test_its_figures_are_of_this_model(script):
    figures = json.loads((TALES / "evaluation.json").read_text())
    measured, = figures["checkpoints"]
    assert measured["parameters"] == sum(p.numel() for p in load_model("tales").parameters())
    assert measured["nats_per_canvas"] > measured["entropy_nats_per_tale"] - 1 and [way["flags"] for way in figures["ways"]] == list(script.SHIPPED["tales"].ways)
    assert "--progressive" in (TALES / "README.md").read_text()


def test_a_wheel_holds_it_and_it_is_small(tmp_path):
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path], cwd=ROOT, check=True, capture_output=True)
    built = {path.relative_to(tmp_path / "shimmer") for path in (tmp_path / "shimmer").rglob("*") if path.is_file() and path.suffix != ".py"}
    assert built == {path.relative_to(ROOT / "shimmer") for path in [*TALES.parent.glob("*/*"), *(ROOT / "shimmer/assets").iterdir(), *(ROOT / "shimmer").glob("*.mplstyle"), ROOT / "shimmer/py.typed"]}
    assert sum(path.stat().st_size for path in TALES.parent.glob("*/*")) < 8e6


PUZZLE = ".15.2......12..1..65.....3...5...2.."


def test_the_canvas_of_puzzles_solves_nearly_all_and_its_figures_are_its_own(script):
    model, tokenizer = load_checkpoint("sudoku-6")
    figures = json.loads((TALES.parent / "sudoku-6" / "evaluation.json").read_text())
    measured, = figures["checkpoints"]
    assert measured["parameters"] == sum(p.numel() for p in model.parameters()) and [way["flags"] for way in figures["ways"]] == list(script.SHIPPED["sudoku-6"].ways)
    texts = list(sample_puzzles(tokenizer.sudoku, 40, seed=11, held_out=True))
    canvas = torch.tensor([tokenizer.template(part(text)[0]) for text in texts])
    run = refine(model, canvas, model.default_policy(), 36, temperature=0.0, record=False)
    assert sum(written == text for written, text in zip(run.texts(tokenizer), texts)) >= 36


def test_a_puzzle_is_solved_from_the_terminal(elsewhere, capsys):
    assert cli.main(["generate", "--checkpoint", "sudoku-6", "--template", PUZZLE]) == 0
    rows = capsys.readouterr().out.split()
    assert "".join(rows) == solve(Sudoku(2, 3), PUZZLE) == "315624426531243156651342132465564213"


@pytest.mark.parametrize("flags, said", [("", "give one as infill"), ("--infill 123", "has 3 cells"), ("--infill " + "." * 36, "several solutions"), ("--infill 11" + "." * 34, "the clues contradict"), (f"--infill {PUZZLE[:-1]}7", "give a digit from 1 to 6")])
def test_what_is_no_puzzle_is_refused_in_a_sentence(elsewhere, capsys, flags, said):
    assert cli.main(["generate", "--checkpoint", "sudoku-6", *flags.split()]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
