"""The command line, end to end: what it makes, what it refuses, and that a refusal is one line."""
import dataclasses
import gzip
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch

from shimmer import cli, cli_evaluate, cli_train, cli_write, train_options
from shimmer.objectives import Prism
from shimmer.policies import EntropyBound, Order, Schedule, TopK

SIZE = "--num_samples 400 --hidden_size 16 --num_layers 1 --num_heads 2 --num_refine_steps 1 --qk_norm --batch_size 32 --lr 3e-3 " \
       "--stage_epochs 1 --validation_texts 8 --validation_draws 2 --device cpu"
GPT_SIZE = SIZE.replace("--num_refine_steps 1", "").replace("--validation_draws 2", "")
MEASURED = "--num_texts 16 --num_ordered 4 --draws 2 --num_written 4"
ROOM = cli_train.HABITS["tales"].max_seq_len
SOURCE = "--progressive --model lira --dataset tinystories --num_samples 100000 --vocab_size 10000 --hidden_size 288 --num_layers 6 --num_heads 6 " \
         "--max_seq_len 256 --batch_size 64 --stage_epochs 3 --lr 2e-4 --device cuda --gpu 0 --fp16 --checkpoint_name lira_12m"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    "A folder with two finished runs, checkpoints/tiny and checkpoints/tiny_gpt; tests leave it as it is."
    folder = tmp_path_factory.mktemp("cli")
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert cli.main(shlex.split(f"train {SIZE} --checkpoint_name tiny")) == 0
        assert cli.main(shlex.split(f"train --model gpt {GPT_SIZE} --keep_best --checkpoint_name tiny_gpt")) == 0
    finally: os.chdir(before)
    return folder


@pytest.fixture
def run(shared, monkeypatch, capsys):
    "Run a command in the shared folder; returns exit code, output and error lines."
    monkeypatch.chdir(shared)
    monkeypatch.delenv("SHIMMER_DATA", raising=False)

    def call(line):
        capsys.readouterr()
        try: code = cli.main(shlex.split(line))
        except SystemExit as stop: code = stop.code
        out, err = capsys.readouterr()
        return code, out, err
    return call


@pytest.fixture
def refused(run):
    "Run a command that must be refused in one line on standard error, without output files; returns the line."
    def call(line, *parts):
        code, _, err = run(line)
        assert code == 2, err
        assert err.startswith("shimmer: ") and err.count("\n") == 1 and err.endswith("\n"), err
        for part in parts: assert part in err, err
        return err
    return call


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


# --- presets -------------------------------------------------------------------------------------

def parsed(line):
    "The options that a line of training comes to."
    return cli_train.parse(shlex.split(line))


SMALL = cli_train.PRESETS["small"]

def test_a_preset_sets_its_flags_and_gives_way_to_those_given():
    small = parsed("--preset small")
    assert all(getattr(small, name) == value for name, value in SMALL.items())
    other = parsed("--preset small --hidden_size 48 --optimizer adamw --no_qk_norm")
    assert (other.hidden_size, other.optimizer, other.qk_norm) == (48, "adamw", False)
    assert other.batch_size == SMALL["batch_size"] and not parsed("lira").preset


@pytest.mark.parametrize("model", ["gpt", "imadarem", "chunk_trm"])
def test_a_preset_leaves_out_what_a_model_has_no_use_for(model):
    options = parsed(f"{model} --preset small")
    width = options.embed_dim if model == "chunk_trm" else options.hidden_size
    assert width == SMALL["hidden_size"] and options.optimizer == "muon" and not hasattr(options, "num_refine_steps")


# --- the kind of model ---------------------------------------------------------------------------

def test_the_kind_is_named_first_or_by_a_flag():
    assert type(parsed("")) is type(parsed("lira")) is type(parsed("--model lira")) is train_options.TrainLira
    same = [parsed(line) for line in ("chunk-trm --rotary", "chunk_trm --rotary", "--rotary --model=chunk_trm", "--model chunk-trm --rotary", "gpt --model gpt") if "gpt" not in line]
    assert all(options == same[0] for options in same) and type(same[0]) is train_options.TrainChunkTRM
    assert type(parsed("gpt --model gpt")) is train_options.TrainGPT
    with pytest.raises(ValueError, match="two kinds of model"): parsed("gpt --model lira")
    with pytest.raises(ValueError, match="'' is unknown"): parsed("--model")


@pytest.mark.parametrize("kind", cli_train.MODELS.values(), ids=lambda kind: kind.kind)
def test_an_option_of_a_model_is_the_configs_own(kind):
    "Defaults are those of the config and the trainer, but for what the command says itself."
    options, said = kind(), {"max_seq_len", "vocab_size", "context_size", "checkpoint_dir", "ema_decay"}
    config = next(base for base in kind.__mro__ if base.__name__.endswith("Config") and base is not cli_train.TrainConfig)
    for base in (config, cli_train.TrainConfig):
        for field in dataclasses.fields(base):
            if field.name not in said: assert getattr(options, field.name) == field.default, field.name
    assert options.ema_decay == 0.0  # of the weights that are kept


def test_a_preset_trains(run, shared, tmp_path, monkeypatch):
    code, out, err = run(f"train --preset small {SIZE} --max_seq_len 64 --checkpoint_name {tmp_path / 'preset'}")
    assert code == 0, err
    config = json.loads((tmp_path / "preset" / "config.json").read_text())
    assert config["hidden_size"] == 16 and config["max_seq_len"] == 64 and config["position_embedding"] and config["qk_norm"]
    assert "float32" in out + err or "bfloat16" in out + err or "fp32" in out + err or "bf16" in out + err


# --- what it makes -------------------------------------------------------------------------------

def test_training_leaves_a_whole_checkpoint_and_says_where(run, shared):
    code, out, err = run(f"train {SIZE} --checkpoint_name fresh")
    assert (code, err) == (0, "")
    assert "checkpoints/fresh" in out and "learning_curve.png" in out and "nats a canvas" in out and "bits per byte" in out and "entropy" in out
    names = {path.name for path in (shared / "checkpoints/fresh").iterdir()}
    assert names >= {"config.json", "model.safetensors", "shimmer_tokenizer.json", "log.jsonl", "training_state", "learning_curve.png", "flags.json"}
    same = shared / "checkpoints/tiny/model.safetensors"
    assert (shared / "checkpoints/fresh/model.safetensors").read_bytes() == same.read_bytes()


def test_generate_goes_on_from_the_prompt(run):
    code, out, err = run('generate --checkpoint checkpoints/tiny --prompt "Once upon a time" --num_samples 2 --num_steps 4 --seed 1')
    assert (code, err) == (0, "")
    assert out.count("Once upon a time") == 2
    assert run('generate --checkpoint checkpoints/tiny --prompt "Once upon a time" --num_steps 4 --seed 2')[1] in out


@pytest.mark.parametrize("flags", ["--sampler remask --threshold 0.6 --remask_threshold 0.2", "--policy top-k --order random --schedule cosine", "--temperature 0", "--num_refine_steps 2", "--gen-length 5"])
def test_generate_takes_every_way_to_write(run, flags):
    code, out, err = run(f"generate --checkpoint checkpoints/tiny --prompt Once --num_steps 3 {flags}")
    assert (code, err) == (0, "") and out.startswith("Once")


def test_show_prints_the_trajectory(run):
    _, out, _ = run("generate --checkpoint checkpoints/tiny --prompt Once --gen_length 4 --num_steps 2 --show")
    assert "call" in out and "stopped: canvas full" in out


def test_infilling_keeps_what_was_given(run, shared):
    from shimmer.tales import Tales
    tale = Tales().sample(1, seed=3)[0]
    first, second, *rest = tale.split(" ")
    _, out, _ = run("generate --checkpoint checkpoints/tiny --infill " + shlex.quote(" ".join([first, "____", *rest])))
    assert out.startswith(first) and out.rstrip("\n").endswith(" ".join(rest))


def test_gaps_of_any_length(run, shared, monkeypatch):
    monkeypatch.chdir(shared)
    flags = ["--checkpoint", "checkpoints/tiny", "--infill", "Once ___ a time, ___ was ___."]
    for more, masks in ((["--gap_tokens", "3"], 9), ([], 3)):
        model, tokenizer, options = cli_write.parse(cli_write.Generate, [*flags, *more])
        assert (cli_write.canvas_of(model, tokenizer, options) == tokenizer.mask_token_id).sum() == masks
    code, out, _ = run("generate --checkpoint checkpoints/tiny --gap_tokens auto --infill " + shlex.quote("Once ___ a time, ___ was happy."))
    assert code == 0 and out.startswith("Once") and out.rstrip().endswith("was happy.")


def test_depth_that_adapts(run):
    code, out, _ = run("generate --checkpoint checkpoints/tiny --depth_threshold 0.5 --num_refine_steps 1 --prompt Once --gen_length 3")
    assert code == 0 and out.startswith("Once")


def test_infilling_ends_the_text_or_leaves_room(shared, monkeypatch):
    monkeypatch.chdir(shared)
    model, tokenizer, options = cli_write.parse(cli_write.Generate, ["--checkpoint", "checkpoints/tiny", "--infill", "Once ___ a time"])
    whole, = cli_write.canvas_of(model, tokenizer, options)
    assert len(whole) == ROOM and (whole[4:] == tokenizer.eos_token_id).all() and (whole == tokenizer.mask_token_id).sum() == 1
    options.gen_length = 3
    open_ended, = cli_write.canvas_of(model, tokenizer, options)
    assert (open_ended == tokenizer.mask_token_id).tolist() == [False, True, False, False, True, True, True]


def test_evaluate_measures_and_writes_json(run, shared):
    code, out, err = run(f"evaluate --checkpoint checkpoints/tiny {MEASURED} --output figures.json")
    assert (code, err) == (0, "") and "nats_per_canvas" in out
    found = json.loads((shared / "figures.json").read_text())
    figures, = found["checkpoints"]
    assert found["corpus"] == "tales" and found["differences"] == [] and (figures["canvases"], figures["canvas_length"], figures["ordered_canvases"]) == (16, ROOM, 4)
    assert figures["likelihood"] == "at most (2 draws)" and figures["nats_per_canvas"] > figures["entropy_nats_per_tale"]
    assert figures["nats_per_token"] == pytest.approx(figures["nats_per_canvas"] / ROOM)
    for name in ("nats_per_canvas", "bits_per_byte", "left_to_right_bits_per_byte", "duel_1_bits_per_byte"):
        low, high = figures[f"{name}_95_percent"]
        assert 0 < low < figures[name] < high, name
    low, high = figures["tales_right_95_percent"]
    assert 0 <= low <= figures["tales_right"] <= high <= 1 and sum(figures["tales_wrong_by"].values()) == 4 * (1 - figures["tales_right"])
    for place in ("masked", "filled"): assert 0 <= figures[f"ece_at_{place}"] <= 1 and 0 <= figures[f"brier_at_{place}"] <= 1
    assert figures["written_texts"] == 4 and figures["right_nats_per_tale"] is None and "duel_2_bits_per_byte" not in figures


def test_evaluate_agrees_with_the_library(run, shared, monkeypatch):
    from shimmer.canvases import encode_corpus
    from shimmer.checkpoints import load_checkpoint
    from shimmer.corpora import load_corpus
    from shimmer.likelihood import bits_per_byte, duel_nll, left_to_right_nll, nelbo, paired_difference
    assert run(f"evaluate --checkpoint checkpoints/tiny checkpoints/tiny_gpt {MEASURED} --seed 5 --output library.json")[0] == 0
    found = json.loads((shared / "library.json").read_text())
    (lira, tokenizer), (gpt, _) = (load_checkpoint(f"checkpoints/{name}") for name in ("tiny", "tiny_gpt"))
    rows = encode_corpus(load_corpus("tales", limit=400), tokenizer, ROOM).valid[:16]["ids"].long()
    texts, (first, second) = [tokenizer.decode(row) for row in rows], found["checkpoints"]
    bound, exact = nelbo(lira, rows, draws=2, seed=5), left_to_right_nll(gpt, rows)
    assert first["nats_per_canvas"] == pytest.approx(bound.mean().item()) and second["nats_per_canvas"] == pytest.approx(exact.mean().item())
    assert second["bits_per_byte"] == pytest.approx(bits_per_byte(exact, texts)) and first["duel_1_bits_per_byte"] == pytest.approx(bits_per_byte(duel_nll(lira, rows[:4]), texts[:4]))
    difference, = found["differences"]
    for kind, a, b in (("nll", exact, bound), ("left_to_right", exact[:4], left_to_right_nll(lira, rows[:4]))):
        value, low, high = paired_difference(a, b)
        assert difference[f"{kind}_nats_per_canvas"] == pytest.approx(value) and difference[f"{kind}_nats_per_canvas_95_percent"] == pytest.approx([low, high])


def test_a_gpt_is_exact_and_states_no_confidence(run, shared):
    assert run("evaluate --checkpoint checkpoints/tiny_gpt --num_texts 16 --num_ordered 4 --num_written 4 --output gpt.json")[0] == 0
    figures, = json.loads((shared / "gpt.json").read_text())["checkpoints"]
    assert figures["likelihood"] == "exact" and figures["num_refine_steps"] is None and figures["tales_written"] == 4
    assert not any(name.startswith(("duel", "ece", "brier", "confidence")) for name in figures)


def test_full_scores_every_validation_text_and_duel_at_more_than_one(run, shared, monkeypatch):
    import shimmer.evaluation
    from shimmer.corpora import load_corpus
    for name in ("nll", "left_to_right_nll", "duel_nll"): monkeypatch.setattr(shimmer.evaluation, name, lambda model, ids, k=1, **options: k + torch.rand(len(ids), dtype=torch.float64))
    assert run("evaluate --checkpoint checkpoints/tiny --full --num_written 1 --num_texts 4 --output full.json")[0] == 0
    figures, = json.loads((shared / "full.json").read_text())["checkpoints"]
    assert figures["canvases"] == len(load_corpus("tales", limit=1).valid) and figures["duel_1_bits_per_byte"] < figures["duel_2_bits_per_byte"] < figures["duel_4_bits_per_byte"]


def test_another_tokenizer_is_compared_in_bits_per_byte_only(run, shared):
    assert run(f"train {GPT_SIZE} --model gpt --tokenizer char --max_seq_len 128 --checkpoint_name letters_gpt")[0] == 0
    assert run(f"evaluate --checkpoint checkpoints/tiny checkpoints/letters_gpt {MEASURED} --output tokenizers.json")[0] == 0
    found = json.loads((shared / "tokenizers.json").read_text())
    assert found["differences"] == [{"checkpoint": "checkpoints/letters_gpt", "compared_with": "checkpoints/tiny", "note": "another tokenizer or canvas length: compare bits per byte only"}]
    assert all(figures["bits_per_byte"] > 0 for figures in found["checkpoints"])


def test_a_gpt_writes_from_left_to_right(run, shared):
    line = 'generate --checkpoint checkpoints/tiny_gpt --prompt "Once upon a time" --num_samples 2 --seed 1 --gen_length 6'
    code, out, err = run(f"{line} --show")
    assert (code, err) == (0, "") and out.count("Once upon a time") >= 2 and "call" in out
    assert run(f"{line} --top_k 1")[1] == run(f"{line} --temperature 0")[1] == run(f"{line} --top_p 1e-9")[1]
    assert run("animate --checkpoint checkpoints/tiny_gpt --prompt Once --gen_length 4 --output gpt.html")[0] == 0
    assert run("generate --checkpoint checkpoints/tiny_gpt")[0] == 0


MENDING = SIZE.replace("--num_refine_steps 1", "--max_refinement_steps 3")

@pytest.mark.parametrize("gate", ["", "--no_gate"])
def test_an_imadarem_trains_mends_and_is_measured(run, shared, gate):
    name = f"mending{gate.strip('-')}"
    assert run(f"train --model imadarem {gate} {MENDING} --checkpoint_name {name}")[0] == 0
    assert json.loads((shared / "checkpoints" / name / "config.json").read_text())["use_refine_gate"] == (not gate)
    code, out, _ = run(f'generate --checkpoint checkpoints/{name} --prompt "Once upon a time" --num_samples 2 --show')
    assert code == 0 and out.count("Once upon a time") >= 2 and not re.search(r"│\s+4 │", out)  # three calls at most
    assert run(f"generate --checkpoint checkpoints/{name} --sampler mend --num_steps 1 --infill 'Once upon ___ time,'")[0] == 0
    assert run(f"generate --checkpoint checkpoints/{name} --sampler topk --order random")[0] == 0
    assert run(f"animate --checkpoint checkpoints/{name} --output {name}.html")[0] == 0
    assert run(f"evaluate --checkpoint checkpoints/{name} {MEASURED} --output {name}.json")[0] == 0
    figures, = json.loads((shared / f"{name}.json").read_text())["checkpoints"]
    assert figures["model_type"] == "imadarem" and 0 <= figures["ece_at_filled"] <= 1 and "ece_at_masked" not in figures
    assert run(f"train --model imadarem {gate} {MENDING} --checkpoint_name {name} --resume")[0] == 0

def test_the_teachers_average_is_not_the_trainers():
    from shimmer.tokenizers import WordTokenizer
    options = train_options.TrainImadarem(max_seq_len=8, hidden_size=16, num_heads=2)
    assert options.build(WordTokenizer.train(["a b"])).config.ema_decay == 0.995 != options.ema_decay

def test_what_rewriting_has_no_use_for_is_refused(run, shared, refused):
    assert run(f"train imadarem {MENDING} --checkpoint_name mends")[0] == 0
    refused("generate --checkpoint checkpoints/mends --order random", "--order", "an imadarem that writes by the policy refine-gate")
    refused("generate --checkpoint checkpoints/mends --num_refine_steps 2", "--num_refine_steps", "an imadarem")
    refused("evaluate --checkpoint checkpoints/mends --order random", "--order", "a model that rewrites")

def test_a_models_own_settings_are_the_defaults(run, shared):
    assert run(f"train imadarem {MENDING} --stop_threshold 0.5 --sampling_temperature 0.9 --checkpoint_name settled")[0] == 0
    read = lambda flags: cli_write.parse(cli_write.Generate, shlex.split(f"--checkpoint checkpoints/settled {flags}"))
    model, _, options = read("")
    assert options.sampler.rule == model.default_policy() and options.sampler.rule.stop_threshold == 0.5
    assert cli_write.temperature_of(model, options) == 0.9 and cli_write.calls_of(model, options.sampler, 50) == 3
    _, _, other = read("--stop_threshold 0.25 --temperature 0 --num_steps 2")
    assert other.sampler.rule == dataclasses.replace(options.sampler.rule, stop_threshold=0.25)
    assert cli_write.temperature_of(model, other) == 0 and cli_write.calls_of(model, other.sampler, 50) == 2
    model, _, lira = cli_write.parse(cli_write.Generate, shlex.split("--checkpoint checkpoints/tiny"))
    assert lira.sampler.rule == EntropyBound() and cli_write.temperature_of(model, lira) == 0.8 and cli_write.calls_of(model, lira.sampler, 50) == 50

def test_only_a_model_with_a_policy_mends(refused):
    refused("generate --checkpoint checkpoints/tiny --sampler mend", "sampler is mend", "a lira", "choose entropy-bound or confidence-threshold")
    refused("train --gate", "--gate is set", "a lira")
    refused("train --model imadarem --num_refine_steps 2 --reinject", "--num_refine_steps and --reinject are set", "an imadarem")


def test_a_chunk_trm_trains_writes_and_is_measured(run, shared):
    line = f"train --model chunk_trm {GPT_SIZE.replace('--qk_norm', '')} --chunk_size 3 --n_refinements 2 --n_recursions 1 --supervision_steps 2 --rotary --keep_best --checkpoint_name chunks"
    code, out, err = run(line)
    assert (code, err) == (0, "") and "model       chunk_trm" in out and "validation  exactly" in out
    held = json.loads((shared / "checkpoints/chunks/config.json").read_text())
    assert (held["context_size"], held["chunk_size"], held["embed_dim"], held["supervision_steps"], held["rotary"]) == (ROOM - 3, 3, 16, 2, True)
    written = run('generate --checkpoint checkpoints/chunks --prompt "Once upon a time" --num_samples 2 --gen_length 90 --top_k 5 --show')
    assert written[0] == 0 and written[1].count("Once upon a time") >= 2
    assert run("animate --checkpoint checkpoints/chunks --prompt Once --gen_length 4 --output chunks.html")[0] == 0
    assert run("evaluate --checkpoint checkpoints/tiny_gpt checkpoints/chunks --num_texts 16 --num_ordered 4 --num_written 4 --output chunks.json")[0] == 0
    figures = json.loads((shared / "chunks.json").read_text())
    assert figures["checkpoints"][1]["likelihood"] == "exact" and "nll_nats_per_canvas" in figures["differences"][0]
    assert run(line + " --resume")[0] == 0 and run("info --checkpoint checkpoints/chunks")[0] == 0


def test_the_best_weights_are_said_to_be_kept(run, shared):
    code, out, _ = run(f"train --model gpt {GPT_SIZE} --lr 0.3 --stage_epochs 3 --validate_every 4 --keep_best --checkpoint_name early")
    log = [json.loads(line) for line in (shared / "checkpoints/early/log.jsonl").read_text().splitlines()]
    valid = {row["step"]: row["valid_nats"] for row in log if "valid_nats" in row}
    best = min(valid, key=valid.get)
    assert code == 0 and f"exactly {valid[best]:.2f}" in out and f"of step {best}" in out
    assert f"the best validation, {valid[best]:.2f}" in run("info --checkpoint checkpoints/early")[1]


@pytest.mark.parametrize("line, parts", [
    ("train --model gpt --progressive", ["--progressive is set", "a gpt"]),
    ("train --model gpt --num_refine_steps 2 --mask_ratio 0.2 0.9", ["--num_refine_steps and --mask_ratio are set"]),
    ("train --model gpt --position_embedding", ["--position_embedding"]),
    ("train --model gpt --num_samples 100 --hidden_size 17", ["17"]),
    ("train --chunk_size 4", ["--chunk_size is set", "a lira"]),
    ("train --model gpt --n_recursions 2 --rotary", ["--n_recursions and --rotary are set"]),
    ("train --model chunk_trm --qk_norm --mask_ratio 0.2 0.9", ["--mask_ratio", "--qk_norm"]),
    ("train gpt --no_gate --validation-draws=3 --lr 1e-3", ["--gate and --validation_draws are set"]),
    ("train gpt --model lira", ["two kinds of model"]),
    ("train --model chunk_trm --num_samples 100 --max_seq_len 8 --chunk_size 8", ["a canvas is a context and a chunk"]),
    ("generate --checkpoint checkpoints/tiny --top_k 3", ["--top_k is set", "a lira"]),
    ("generate --checkpoint checkpoints/tiny --policy threshold-remasking --order random", ["--order is set", "the policy threshold-remasking"]),
    ("generate --checkpoint checkpoints/tiny --threshold 0.5", ["--threshold is set", "the policy entropy-bound"]),
    ("generate --checkpoint checkpoints/tiny --policy nosuch", ["'nosuch'", "choose auto, entropy-bound"]),
    ("generate --checkpoint checkpoints/tiny_gpt --policy top-k", ["--policy is set", "a gpt"]),
    ("generate --checkpoint checkpoints/tiny_gpt --infill 'Lily ___ a ball.'", ["--infill", "a gpt"]),
    ("generate --checkpoint checkpoints/tiny_gpt --sampler remask --order random", ["--sampler and --order are set"]),
    ("generate --checkpoint checkpoints/tiny_gpt --num_refine_steps 2", ["--num_refine_steps"]),
    ("generate --checkpoint checkpoints/tiny_gpt --top_k 0", ["top_k is 0"]),
    ("generate --checkpoint checkpoints/tiny_gpt --num_samples 0", ["num_samples is 0"]),
    ("generate --checkpoint checkpoints/tiny_gpt --gen_length 100", ["100 new tokens are asked for"]),
    ("evaluate --checkpoint checkpoints/tiny_gpt --order random", ["--order", "reads in order"]),
    ("evaluate --checkpoint checkpoints/tiny checkpoints/nowhere", ["nowhere"]),
    ("evaluate --checkpoint", ["0 directories"]),
])
def test_what_a_model_has_no_use_for_is_refused(refused, line, parts):
    refused(line, *parts)


def test_the_source_texts_names_of_policies_are_understood(run):
    for old, new in cli_write.SOURCE_NAMES.items():
        line = "generate --checkpoint checkpoints/tiny --num_steps 3 --gen_length 8"
        assert run(f"{line} --sampler {old}") == run(f"{line} --policy={new}") == run(f"{line} --sampler={old}")


@pytest.mark.parametrize("ending, start", [("html", b"<!doctype html>"), ("gif", b"GIF8"), ("png", b"\x89PNG")])
def test_animate_by_ending(run, shared, ending, start):
    code, out, err = run(f"animate --checkpoint checkpoints/tiny --prompt Once --gen_length 6 --num_steps 3 --output tale.{ending}")
    assert (code, err) == (0, "") and out == f"tale.{ending}\n"
    assert (shared / f"tale.{ending}").read_bytes().startswith(start)
    assert run(f"animate --checkpoint checkpoints/tiny --prompt Once --gen_length 6 --num_steps 3 --output tale.{ending} --overwrite")[0] == 0


def test_info(run, monkeypatch):
    monkeypatch.setenv("SHIMMER_CACHE", "elsewhere")
    code, out, _ = run("info --checkpoint checkpoints/tiny")
    assert code == 0 and "elsewhere" in out and torch.__version__ in out
    assert "hidden_size" in out and "nats a canvas at step" in out and "word" in out


# --- flags ---------------------------------------------------------------------------------------

def test_the_source_texts_line_parses(monkeypatch):
    seen = []
    monkeypatch.setattr(cli_train, "train", seen.append)
    assert cli.main(["train", *shlex.split(SOURCE)]) == 0
    assert cli.main(["train", *shlex.split(SOURCE.replace("_size", "-size").replace("--dataset", "--corpus"))]) == 0
    options, same = seen
    assert options == same
    assert (options.dataset, options.num_samples, options.vocab_size, options.hidden_size, options.num_layers, options.num_heads) == ("tinystories", 100_000, 10_000, 288, 6, 6)
    assert (options.max_seq_len, options.batch_size, options.stage_epochs, options.lr, options.device, options.gpu, options.fp16) == (256, 64, 3, 2e-4, "cuda", 0, True)
    assert [(s.objective.num_refine_steps, s.objective.mask_ratio, s.objective.confidence_weight, s.epochs) for s in options.stages()] == [
        (1, (0.3, 0.3), 0.0, 3), (None, (0.3, 0.3), 0.0, 3), (None, (0.1, 1.0), 0.0, 3), (None, (0.1, 1.0), 0.1, 3)]
    assert options.num_refine_steps == 4


@pytest.mark.parametrize("more", ["", "--progressive"])
def test_a_head_that_judges_draws_is_trained_in_the_last_stage(monkeypatch, more):
    seen = []
    monkeypatch.setattr(cli_train, "train", seen.append)
    assert cli.main(["train", "lira", "--judge_draws", "--mask_ratio", "0.2", "0.9", *more.split()]) == 0
    stages = seen[0].stages()
    assert stages[-1].objective == Prism((0.2, 0.9), 0.1) and not any(isinstance(stage.objective, Prism) for stage in stages[:-1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_the_source_texts_line_asks_for_cuda(refused):
    refused(f"train {SOURCE}", "'cuda'", "not available")


STORIES = "".join(f"{name} saw a {animal}. The {animal} was {mood}. {name} was {mood} too.\n<|endoftext|>\n"
                  for name in ("Tim", "Ann", "Sue", "Bob") for animal in ("dog", "cat", "cow", "hen", "fox") for mood in ("glad", "sad", "calm", "shy"))


def test_the_source_texts_line_trains_without_cuda(run, shared, tmp_path, monkeypatch):
    (tmp_path / "tinystories").mkdir()
    for split in ("train", "valid"): (tmp_path / "tinystories" / f"{split}.txt").write_text(STORIES)
    monkeypatch.setenv("SHIMMER_DATA", str(tmp_path))
    tiny = {"--device cuda --gpu 0 --fp16": "--device cpu --validation_texts 8 --validation_draws 1", "--vocab_size 10000": "--vocab_size 290", "--hidden_size 288": "--hidden_size 12",
            "--num_layers 6": "--num_layers 1", "--max_seq_len 256": "--max_seq_len 64", "--batch_size 64": "--batch_size 10"}
    line = SOURCE
    for full, small in tiny.items(): line = line.replace(full, small)
    code, out, err = run(f"train {line}")
    assert (code, err) == (0, "") and "checkpoints/lira_12m" in out and "sentencepiece" in out
    stages = {row["stage"] for row in map(json.loads, (shared / "checkpoints/lira_12m/log.jsonl").read_text().splitlines())}
    assert stages == {"single pass", "iterations", "variable masking", "confidence"}
    code, out, err = run('generate --checkpoint checkpoints/lira_12m --prompt "Tim saw" --num_steps 3')
    assert (code, err) == (0, "") and out.startswith("Tim saw")


def test_a_corpus_decides_tokenizer_and_length(run, shared, tmp_path, monkeypatch):
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare/input.txt").write_text("To be, or not to be, that is the question:\n" * 600)
    monkeypatch.setenv("SHIMMER_DATA", str(tmp_path))
    code, out, err = run(f"train {SIZE.replace('--num_samples 400', '')} --corpus tinyshakespeare --batch_size 8 --checkpoint_name letters")
    assert (code, err) == (0, "") and "canvases of 256" in out and "char" in out and "entropy" not in out
    assert run("evaluate --checkpoint checkpoints/letters --num_texts 2 --num_ordered 1 --draws 1 --num_written 2")[0] == 0
    assert run('generate --checkpoint checkpoints/letters --infill "To __, or" --num_samples 2')[1].count("To ") == 2


def test_molecules_are_trained_on_written_and_measured(run, shared, tmp_path, monkeypatch):
    smiles = ["CCO", "CC(=O)O", "c1ccccc1", "CC(=O)Oc1ccccc1C(=O)O", "CC(=O)Nc1ccc(O)cc1", "CC(N)C(=O)O", "NCCc1ccc(O)c(O)c1", "CCN(CC)CC"]
    (tmp_path / "moses").mkdir()
    for split, part in (("train", smiles * 20), ("test", smiles[2:6])):
        with gzip.open(tmp_path / "moses" / f"{split}.smi.gz", "wt") as file: file.write("\n".join(part))
    monkeypatch.setenv("SHIMMER_DATA", str(tmp_path))
    for kind, size in (("lira", SIZE), ("gpt", f"--model gpt {GPT_SIZE}")):
        code, out, err = run(f"train {size.replace('--num_samples 400', '').replace(f'--max_seq_len {ROOM}', '')} --corpus moses --batch_size 8 --checkpoint_name {kind}_moses")
        assert (code, err) == (0, "") and "selfies" in out and "entropy" not in out
    assert "160 canvases of 53" in out
    assert run("evaluate --checkpoint checkpoints/lira_moses checkpoints/gpt_moses --num_texts 4 --num_ordered 2 --draws 1 --num_written 6 --output moses.json")[0] == 0
    for figures in json.loads((shared / "moses.json").read_text())["checkpoints"]:
        assert figures["molecules_written"] == 6 and figures["molecules_unique_at_1000"] is None and 0 <= figures["molecules_read_whole"] <= figures["molecules_valid"] <= 1
        assert "tales_right" not in figures and figures["written_length"] <= 53
    code, out, err = run('generate --checkpoint checkpoints/lira_moses --infill "[C][MASK:3][O]" --show')
    assert (code, err) == (0, "") and re.search(r"^\[C\].*\[O\]$", out, re.M)
    assert run("info --checkpoint checkpoints/lira_moses")[0] == 0


def test_the_longest_molecule_and_its_end_fit_the_canvas():
    from shimmer.corpora import LOCAL, load_corpus
    if not (folder := os.environ.get("SHIMMER_DATA")) or not (Path(folder) / LOCAL["moses"][1]).is_file(): pytest.skip("the molecules of MOSES are not here")
    assert max(text.count("[") for text in load_corpus("moses", limit=1).valid["text"]) < cli_train.HABITS["moses"].max_seq_len


def test_many_texts_are_written_a_part_at_a_time_and_are_the_same(run, monkeypatch):
    import shimmer.evaluation
    line = "generate --checkpoint checkpoints/tiny --num_samples 5 --num_steps 3 --device cpu"
    whole = run(line)
    monkeypatch.setattr(shimmer.evaluation, "AT_ONCE", 2)
    assert run(line) == whole and whole[0] == 0


@pytest.mark.parametrize("words", ["info --checkpoint '[/b]'", "info --checkpoint /", "info --checkpoint '~nobody-of-that-name/x'", "generate --checkpoint checkpoints/tiny --num_samples 4294967296",
                                   "generate --checkpoint checkpoints/tiny --num_refine_steps 1000000000000000000", "evaluate --checkpoint checkpoints/tiny --num_written 4294967296", "generate --checkpoint loop"])
def test_hostile_words_are_refused_in_one_line(refused, shared, words):
    if not (shared / "loop").is_symlink(): (shared / "loop").symlink_to(shared / "loop")
    refused(words)


def test_a_prompt_that_is_no_text_is_refused_in_one_line(shared, monkeypatch, capsys):
    monkeypatch.chdir(shared)
    code = cli.main(["generate", "--checkpoint", "checkpoints/tiny", "--prompt", "lone \ud800 surrogate"])
    assert code == 2 and capsys.readouterr().err.count("\n") == 1


def test_choices_are_the_samplers_own():
    hints = typing.get_type_hints(cli_evaluate.Evaluate)
    assert typing.get_args(hints["order"]) == typing.get_args(Order)
    assert set(typing.get_args(typing.get_type_hints(cli_write.OnCanvas)["policy"])) == {"auto", *cli_write.POLICIES}
    hints = typing.get_type_hints(TopK)
    assert hints["order"] == Order and hints["schedule"] == Schedule


@pytest.mark.parametrize("precision", ["bf16", "auto", "fp32"])
def test_texts_and_figures_come_in_any_precision(run, precision, monkeypatch):
    seen, autocast = [], cli_write.autocast
    for module in (cli_write, cli_evaluate): monkeypatch.setattr(module, "autocast", lambda device, asked: (seen.append(asked), autocast(device, asked))[1])
    code, out, err = run(f"generate --checkpoint checkpoints/tiny --num_steps 3 --device cpu --precision {precision}")
    assert (code, err) == (0, "") and out.strip() and seen == [precision]
    code, out, err = run(f"evaluate --checkpoint checkpoints/tiny --num_texts 2 --num_ordered 1 --draws 1 --num_written 2 --device cpu --precision {precision}")
    assert (code, err) == (0, "") and "bits" in out and seen == [precision] * 2


def test_flags_reach_what_they_are_named_after(shared):
    from shimmer.lira import LatentCanvasConfig
    options = train_options.TrainLira(device="cpu", hidden_size=24, num_heads=2, qk_norm=True, num_prelude_layers=1, reinject=True, max_seq_len=12, lr=0.5, gradient_accumulation=2, ema_decay=0.9, seed=3)
    tokenizer = type("Ids", (), dict(vocab_size=7, mask_token_id=7, pad_token_id=6, given_token_ids=()))
    config = options.build(tokenizer).config
    asked, built = cli.same_names(LatentCanvasConfig, options), cli.same_names(LatentCanvasConfig, config)
    assert {name for name in asked if asked[name] != built[name]} == {"vocab_size", "mask_token_id", "pad_token_id"}
    assert (config.qk_norm, config.num_prelude_layers, config.reinject, config.max_seq_len, config.vocab_size, config.pad_token_id) == (True, 1, True, 12, 7, 6)
    train = cli_train.train_config(options, Path("x"))
    assert (train.lr, train.gradient_accumulation, train.ema_decay, train.seed, train.checkpoint_dir, train.progress) == (0.5, 2, 0.9, 3, "x", False)


def test_weights_are_a_function_of_the_seed():
    def weight(seed):
        options = train_options.TrainLira(num_samples=40, hidden_size=16, num_heads=2, max_seq_len=72, seed=seed)
        return cli_train.prepare(options)[1].lm_head.weight
    assert torch.equal(weight(1), weight(1)) and not torch.equal(weight(1), weight(2))


KINDS = {**{f"train {name}": (kind,) for name, kind in cli_train.MODELS.items()}, "evaluate": (cli_evaluate.Evaluate,), "info": (cli_evaluate.Info,),
         **{f"{kind.__name__.lower()} --policy {name}": (kind, cli_write.OnCanvas, policy) for kind in (cli_write.Generate, cli_write.Animate) for name, policy in cli_write.POLICIES.items()}}

@pytest.mark.parametrize("line, kinds", KINDS.items(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_flag_has_a_help_text(capsys, line, kinds):
    with pytest.raises(SystemExit) as stop: cli.main([*line.split(), "--help"])
    text = " ".join(re.sub("[│|]", " ", capsys.readouterr().out).split())
    assert stop.value.code == 0
    parts = dict.fromkeys(part for kind in kinds for part in kind.__mro__ if dataclasses.is_dataclass(part))
    written = [found for part in parts for found in re.findall(r"^((?:    # .*\n)*)    (\w+): .*?(?:  # (.+))?$", inspect.getsource(part), re.M)]
    comments = {}
    for above, name, after in written: comments.setdefault(name, after or " ".join(re.findall(r"# (.*)", above)))
    for flag in sorted(cli.flags_of(*kinds) - {"rule", "sampler", *(alias for alias in cli.flags_of(*kinds) if alias not in comments)}):
        assert f"--{flag}" in text and comments[flag] and comments[flag] in text, flag


@pytest.mark.parametrize("line", ["train --nope 3", "train --batch_size many", "evaluate", "nothing", "train --optimizer sgd", ""])
def test_usage_errors_are_exit_2_without_a_traceback(run, line):
    code, _, err = run(line)
    assert code == 2 and err and "Traceback" not in err


# --- refusals ------------------------------------------------------------------------------------

@pytest.mark.parametrize("flags, parts", [
    ("--model rnn", ["'rnn'", "choose lira, ", " or chunk_trm"]),
    ("--corpus nosuch.txt", ["nosuch.txt"]),
    ("--corpus nosuch", ["'nosuch'", "tales"]),
    ("--corpus tinystories", ["tinystories", "SHIMMER_DATA"]),
    ("--corpus empty.txt", ["empty.txt", "0 training texts"]),
    ("--corpus short.txt --tokenizer char", ["shorter than one canvas", "max_seq_len"]),
    ("--corpus short.txt", ["vocab_size", "10000"]),
    ("--hidden_size 17", ["17", "num_heads"]),
    ("--mask_ratio 0 1", ["mask_ratio", "(0, 1]"]),
    ("--mask_ratio 0.5 1.5", ["mask_ratio", "1.5"]),
    ("--num_refine_steps 0", ["num_refine_steps is 0", "at least 1"]),
    ("--stage_epochs 0", ["epochs is 0"]),
    ("--batch_size 0", ["batch_size is 0"]),
    ("--batch_size 1000", ["batch_size is 1000"]),
    ("--num_samples 0", ["limit is 0"]),
    ("--vocab_size 300", ["vocab_size=", "word"]),
    ("--max_seq_len 0", ["max_seq_len"]),
    ("--fp16", ["fp16", "bf16"]),
    ("--gpu 0", ["gpu 0", "cpu"]),
    ("--checkpoint_name ../figures_folder --overwrite", ["is no checkpoint", "left alone"]),
    ("--checkpoint_dir short.txt", ["short.txt", "is a file"]),
    ("--checkpoint_dir checkpoints/tiny", ["lies in a checkpoint", "replaced as a whole"]),
    ("--seed 20261122070000", ["seed is 20261122070000", "0 to 4294967295"]),
    ("--tokenizer bpe --vocab_size 0", ["vocab_size=0"]),
])
def test_training_is_refused(refused, shared, flags, parts):
    (shared / "empty.txt").write_text("")
    (shared / "short.txt").write_text("A short text.\nOf two lines.\n")
    (shared / "figures_folder").mkdir(exist_ok=True)
    refused(f"train {SIZE} --checkpoint_name refused {flags}", *parts)
    assert not (shared / "checkpoints/refused").exists() and (shared / "figures_folder").is_dir()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("command", ["generate", "evaluate", "animate --output x.gif"])
def test_cuda_that_is_absent(refused, command):
    refused(f"{command} --checkpoint checkpoints/tiny --device cuda", "'cuda'", "not available")


@pytest.mark.parametrize("flags, parts", [
    ("--gen_length 0", ["gen_length is 0"]),
    (f"--gen_length {ROOM + 1}", [f"{ROOM + 1}", f"{ROOM} at most"]),
    ("--prompt " + shlex.quote("Once" + " a" * 89), ["90 tokens", f"holds {ROOM}"]),
    ("--prompt Zebra", ["'Zebra'", "prompt"]),
    ("--infill 'Lily ran.'", ["no gap", "___"]),
    ("--infill 'Once ___.' --gap_tokens 0", ["gap_tokens is 0", "auto"]),
    ("--infill 'Once ___' --gap_tokens auto --gen_length 3", ["nothing follows gap 1", "give its length"]),
    ("--infill 'Once ___ Zebra.'", ["Zebra'", "the template"]),
    ("--depth_threshold 2", ["threshold is 2", "probability"]),
    ("--infill '[MASK:0]'", ["no tokens"]),
    ("--infill '[MASK:200]'", ["200", f"holds {ROOM}"]),
    ("--infill 'Lily ___' --prompt Lily", ["prompt and infill"]),
    (f"--infill '___' --gen_length {ROOM}", [f"gen_length is {ROOM}"]),
    ("--seed -1", ["seed is -1", "0 to 4294967295"]),
    ("--num_refine_steps 0", ["num_refine_steps is 0"]),
    ("--num_steps 0", ["num_steps is 0"]),
    ("--num_samples 0", ["num_samples is 0"]),
    ("--temperature -1", ["temperature"]),
])
def test_writing_is_refused(refused, flags, parts):
    refused(f"generate --checkpoint checkpoints/tiny {flags}", *parts)


@pytest.fixture
def copy(shared):
    "A copy of the finished run that may be damaged."
    folder = shared / "checkpoints/copy"
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(shared / "checkpoints/tiny", folder))


@pytest.mark.parametrize("name", ["nowhere", "checkpoints/nowhere", "checkpoints", "lira_final.pt"])
def test_a_checkpoint_that_is_none(refused, name):
    for command in ("generate", "evaluate", "info", "animate --output none.gif"): refused(f"{command} --checkpoint {name}", name)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "shimmer_tokenizer.json"])
@pytest.mark.parametrize("size", [None, 0, 60])
def test_a_checkpoint_that_is_not_whole(refused, copy, file, size):
    if size is None: (copy / file).unlink()
    else: os.truncate(copy / file, size)
    refused("generate --checkpoint checkpoints/copy", file)


def test_a_checkpoint_of_another_model(refused, copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    refused("generate --checkpoint checkpoints/copy", "'unheard_of'")


def test_a_checkpoint_with_a_foreign_tokenizer(refused, copy):
    from shimmer.tokenizers import WordTokenizer
    WordTokenizer.train(["Once upon a time."]).save_pretrained(copy)
    refused("generate --checkpoint checkpoints/copy", "tokenizer", "belong together")


def test_damaged_notes_of_a_run(refused, copy):
    (copy / "flags.json").write_text("{")
    refused("evaluate --checkpoint checkpoints/copy", "flags.json", "damaged")
    (copy / "flags.json").unlink()
    refused("evaluate --checkpoint checkpoints/copy", "--corpus")
    (copy / "training_state/progress.json").write_text("{")
    refused("info --checkpoint checkpoints/copy", "progress.json", "damaged")


@pytest.mark.parametrize("file", ["progress.json", "tensors.safetensors"])
def test_a_training_state_that_is_not_whole(refused, copy, file):
    os.truncate(copy / "training_state" / file, 60)
    held = snapshot(copy)
    refused(f"train {SIZE} --checkpoint_name copy --resume", "checkpoints/copy", "damaged")
    assert snapshot(copy) == held


def test_what_exists_is_not_replaced(refused, shared, copy):
    held = snapshot(copy)
    refused(f"train {SIZE} --checkpoint_name copy", "exists", "--resume", "--overwrite")
    refused(f"train {SIZE} --checkpoint_name copy --resume --hidden_size 32", "another model", "hidden_size")
    refused(f"train {SIZE} --checkpoint_name copy --resume --lr 1e-3", "lr")
    assert snapshot(copy) == held
    shutil.rmtree(copy / "training_state")
    refused(f"train {SIZE} --checkpoint_name copy --resume", "training_state")
    (shared / "there.gif").write_text("mine")
    (shared / "there.json").write_text("mine")
    refused("animate --checkpoint checkpoints/tiny --output there.gif", "exists", "--overwrite")
    refused("evaluate --checkpoint checkpoints/tiny --output there.json", "exists", "--overwrite")
    assert (shared / "there.gif").read_text() == (shared / "there.json").read_text() == "mine"


@pytest.mark.parametrize("output, part", [("tale.mp4", ".mp4"), ("tale", ".html"), ("nofolder/tale.gif", "nofolder")])
def test_outputs_that_can_not_be(refused, output, part):
    refused(f"animate --checkpoint checkpoints/tiny --output {output}", part)


@pytest.mark.parametrize("flags, part", [("--num_texts 0", "num_texts"), ("--draws 0", "draws"), ("--num_tales 0", "num_written"), ("--num_ordered 0", "num_ordered"), ("--corpus short.jsonl", "short.jsonl"), ("--output x.csv", ".csv"), ("--temperature -1", "temperature is -1")])
def test_measuring_is_refused(refused, flags, part):
    refused(f"evaluate --checkpoint checkpoints/tiny {flags}", part)


def test_another_corpus_has_words_that_the_checkpoint_does_not_know(refused, shared):
    (shared / "zebras.jsonl").write_text('{"text": "A zebra."}\n' * 40)
    refused("evaluate --checkpoint checkpoints/tiny --corpus zebras.jsonl", "zebra", "in the validation texts of zebras", "the checkpoint's tokenizer must know each word")


# --- what goes wrong on the way ------------------------------------------------------------------

def test_a_loss_that_is_no_number(refused, shared):
    refused(f"train {SIZE} --lr 1e30 --clip 1e30 --warmup_steps 1 --checkpoint_name diverges", "loss is", "step", "lower the learning rate")


def test_a_full_disk_loses_nothing(refused, copy, monkeypatch):
    import shimmer.checkpoints
    held = snapshot(copy)
    def full(*args, **options): raise OSError(28, "No space left on device")
    monkeypatch.setattr(shimmer.checkpoints, "save_file", full)
    refused(f"train {SIZE} --checkpoint_name copy --overwrite", "No space left", "checkpoints/copy")
    assert snapshot(copy) == held and not list(copy.parent.glob("copy.*"))


@pytest.mark.parametrize("command", ["animate --output full.html", "animate --output full.gif", "animate --output full.png", "evaluate --num_texts 1 --num_ordered 1 --draws 1 --num_tales 1 --output full.json"])
def test_a_full_disk_loses_no_output(refused, shared, monkeypatch, command):
    place = shared / command.split()[-1]
    place.write_text("mine")
    before = set(shared.iterdir())
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    refused(f"{command} --checkpoint checkpoints/tiny --overwrite", place.name, "could not be written", "No space left")
    assert place.read_text() == "mine" and set(shared.iterdir()) == before


def test_an_interrupt_says_how_to_go_on_and_resuming_ends_alike(run, shared, monkeypatch):
    import shimmer.training
    update, line = shimmer.training.Trainer.update, f"train {SIZE} --checkpoint_every 5 --checkpoint_name broken"

    def interrupted_at(step):
        def stop(self):
            if self.step == step: raise KeyboardInterrupt
            return update(self)
        return stop

    monkeypatch.setattr(shimmer.training.Trainer, "update", interrupted_at(3))
    code, _, err = run(line)
    assert code == 130 and err.count("\n") == 1 and "before the first checkpoint" in err and not (shared / "checkpoints/broken").exists()
    monkeypatch.setattr(shimmer.training.Trainer, "update", interrupted_at(8))
    code, _, err = run(line)
    assert code == 130 and err.count("\n") == 1 and "step 5" in err and "--resume" in err
    monkeypatch.setattr(shimmer.training.Trainer, "update", interrupted_at(2))
    assert "before the first checkpoint" in run(f"{line} --overwrite")[2]  # what is there belongs to the run before
    monkeypatch.setattr(shimmer.training.Trainer, "update", update)
    assert run(f"{line} --resume")[0] == 0
    assert (shared / "checkpoints/broken/model.safetensors").read_bytes() == (shared / "checkpoints/tiny/model.safetensors").read_bytes()


def test_an_interrupt_elsewhere(run, monkeypatch):
    def stop(options): raise KeyboardInterrupt
    monkeypatch.setitem(cli_evaluate.COMMANDS, "info", stop)
    assert run("info")[::2] == (130, "shimmer: interrupted\n")


@pytest.mark.parametrize("bug", [lambda: json.loads("{"), lambda: torch.zeros(2, 3) @ torch.zeros(2, 3), lambda: {}["missing"]])
def test_a_bug_keeps_its_traceback(run, monkeypatch, bug):
    monkeypatch.setitem(cli_evaluate.COMMANDS, "info", lambda words: bug())
    with pytest.raises((ValueError, RuntimeError, KeyError)): run("info")


# --- as a terminal sees it -----------------------------------------------------------------------

def command(*line, folder):
    script = "import sys; from shimmer.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", script, *line], capture_output=True, text=True, timeout=120, cwd=folder)


@pytest.mark.parametrize("words", [["--help"], [], ["nosuch"]])
def test_help_needs_no_tensor_library(words):
    script = f"import sys; from shimmer.cli import main\ntry: main({words})\nexcept SystemExit as stop: print(stop.code, 'torch' in sys.modules, 'datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith(f"{0 if words == ['--help'] else 2} False False\n")
    assert words or all(name in done.stdout + done.stderr for name in cli.COMMANDS)


def test_the_overview_names_what_the_modules_have():
    import importlib
    for name, (module, says) in cli.COMMANDS.items():
        assert name in importlib.import_module(f"shimmer.{module}").COMMANDS and says.endswith(".")


def test_exit_codes_reach_the_shell(shared):
    done = command("generate", "--checkpoint", "checkpoints/tiny", "--gen_length", "0", folder=shared)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("shimmer: gen_length is 0") and done.stderr.count("\n") == 1
    done = command("train", "--nope", folder=shared)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_the_module_is_the_command_too(shared):
    done = subprocess.run([sys.executable, "-m", "shimmer.cli", "info", "--checkpoint", "nowhere"], capture_output=True, text=True, timeout=120, cwd=shared)
    assert done.returncode == 2 and done.stderr.startswith("shimmer: nowhere") and done.stderr.count("\n") == 1


def test_the_entry_point_is_installed():
    from importlib.metadata import entry_points
    assert {e.value for e in entry_points(group="console_scripts", name="shimmer")} == {"shimmer.cli:main"}
