"""Proofs about training: what a kill leaves behind, what several processes and parts agree on, and what is refused."""
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import shimmer.checkpoints as checkpoints
from shimmer import canvases, optimizers, updates
from shimmer.canvases import Canvases, EncodedCorpus
from shimmer.chunk_baseline import ChunkBaseline, ChunkTRMConfig
from shimmer.chunk_trm import ChunkTRM
from shimmer.checkpoints import load_checkpoint, restore_checkpoint, save_checkpoint
from shimmer.corruption import Batch
from shimmer.devices import autocast, native_precision, resolve_precision
from shimmer.gpt import GPTConfig, GPTModel
from shimmer.imadarem import ImplicitRefinementConfig, ImplicitRefinementModel
from shimmer.likelihood import nll
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.models import Prediction, PretrainedModel
from shimmer.objectives import MaskedLM
from shimmer.optimizers import make_optimizers
from shimmer.schedules import DataSchedule, Stage, TrainConfig, lr_scale
from shimmer.tokenizers import WordTokenizer
from shimmer.training import fit, flops_per_update
from shimmer.updates import BaseTrainer, evaluation_weights, make_accelerator

WORDS = " ".join("abcdefghijklmnopqrst")
TIMES = ("seconds", "tokens_per_second")
STAGES = (Stage("one", MaskedLM(num_refine_steps=1, mask_ratio=(0.3, 0.3)), epochs=2, data_fraction=0.5), Stage("two", MaskedLM(num_refine_steps=2, mask_ratio=(0.01, 1.0), confidence_weight=0.1), epochs=1, data_fraction=0.5))


def make_corpus(train=96, valid=8, length=12):
    tokenizer = WordTokenizer.train([WORDS])
    ids = torch.randint(tokenizer.vocab_size, (train + valid, length), generator=torch.Generator().manual_seed(0)).tolist()
    dataset = lambda rows: Dataset.from_dict({"ids": rows}).with_format("torch")
    return EncodedCorpus(dataset(ids[:train]), dataset(ids[train:]) if valid else Dataset.from_dict({"ids": []}), tokenizer, length, True)


def make_model(seed=0, **options):
    torch.manual_seed(seed)
    options = dict(vocab_size=WordTokenizer.train([WORDS]).vocab_size, hidden_size=8, num_layers=1, num_heads=2, max_seq_len=12, dropout=0.1) | options
    return LatentCanvasModel(LatentCanvasConfig(**options))


def make_config(directory=None, **options):
    options = dict(batch_size=8, lr=1e-2, optimizer="muon", warmup_steps=3, ema_decay=0.9, log_every=4, validate_every=5, validation_texts=4,
                   validation_draws=2, checkpoint_every=3, device="cpu", precision="fp32", progress=False) | options
    return TrainConfig(checkpoint_dir=str(directory) if directory else None, **options)


def same(a, b, **tolerance):
    pairs = list(zip(a.parameters(), b.parameters(), strict=True))
    return all(torch.allclose(p, q, **tolerance) if tolerance else p.equal(q) for p, q in pairs)


def timeless(log): return [{k: v for k, v in row.items() if k not in TIMES} for row in log]


@pytest.fixture(scope="module")
def corpus(): return make_corpus()


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    return fit(make_model(), corpus, STAGES, make_config(tmp_path_factory.mktemp("runs") / "unbroken"))


# --- killed ----------------------------------------------------------------------------------------------------------

SLOWLY_AND_OFTEN_KILLED = """
import os, random, signal, sys, time
sys.path.insert(0, {tests!r})
from test_training import *
write, rename, chance, landed = checkpoints.save_file, checkpoints.Path.rename, random.Random(0), 0
def slow_write(tensors, path):
    os.write(begun, b"x")
    path.write_bytes(b"half a f")
    time.sleep(0.05)
    write(tensors, path)
def slow_rename(self, target):
    result = rename(self, target)
    time.sleep(0.05)
    return result
checkpoints.save_file, checkpoints.Path.rename = slow_write, slow_rename
for attempt in range(7):
    seen, begun = os.pipe()
    if not (child := os.fork()):
        try: fit(make_model(), make_corpus(), STAGES, make_config({directory!r}), resume=True)
        finally: os._exit(0)
    os.close(begun)
    os.read(seen, 1)
    time.sleep(chance.uniform(0, 0.4))
    os.kill(child, signal.SIGKILL)
    landed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    os.close(seen)
    if os.path.exists({directory!r}): load_checkpoint({directory!r})
print(landed)
"""


def test_a_run_killed_again_and_again_ends_as_if_it_never_was(corpus, unbroken, tmp_path):
    code = SLOWLY_AND_OFTEN_KILLED.format(tests=os.path.dirname(__file__), directory=str(tmp_path / "killed"))
    kills = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert int(kills) >= 2
    resumed = fit(make_model(), corpus, STAGES, make_config(tmp_path / "killed"), resume=True)
    assert same(resumed.model, unbroken.model)
    assert timeless(resumed.log) == timeless(unbroken.log)
    ours, theirs = (load_file(d / "training_state" / "tensors.safetensors") for d in (tmp_path / "killed", unbroken.checkpoint_dir))
    assert ours.keys() == theirs.keys() and all(value.equal(theirs[name]) for name, value in ours.items())
    assert os.listdir(tmp_path) == ["killed"]


class Killed(BaseException): pass


def points_of(action, monkeypatch, at):
    "Run an action whose file operations are counted, and stop it dead before number `at`; whether it was stopped."
    count = 0
    with monkeypatch.context() as patch:
        def counted(function):
            def wrapped(*args, **kwargs):
                nonlocal count
                count += 1
                if count == at: raise Killed
                return function(*args, **kwargs)
            return wrapped
        for owner, name in ((checkpoints.Path, "rename"), (checkpoints.Path, "mkdir"), (checkpoints.Path, "write_text"), (checkpoints.shutil, "rmtree"), (checkpoints, "save_file"), (checkpoints.os, "fsync")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        try: action()
        except Killed: return True
    return False


@pytest.mark.parametrize("before", [False, True])
def test_a_save_stopped_before_any_operation_leaves_the_old_or_the_new_whole(before, monkeypatch, tmp_path):
    old, new, tokenizer = make_model(1), make_model(2), WordTokenizer.train([WORDS])
    seen = set()
    for at in range(1, 100):
        directory = tmp_path / str(at) / "run"
        if before: save_checkpoint(directory, old, tokenizer)
        stopped = points_of(lambda: save_checkpoint(directory, new, tokenizer, ({"x": torch.zeros(1)}, {}), [{"step": 1}]), monkeypatch, at)
        read = lambda: next((n for n, m in (("old", old), ("new", new)) if same(load_checkpoint(directory)[0], m)), "neither")
        try: found = read()
        except FileNotFoundError: found = "none"
        assert found in (("old", "new") if before else ("none", "new"))
        restore_checkpoint(directory)
        assert (read() if directory.exists() else "none") == found
        assert os.listdir(directory.parent) == (["run"] if directory.exists() else []) if directory.parent.exists() else True
        seen.add(found)
        if not stopped: break
    assert not stopped and found == "new" and len(seen) == 2


def test_reading_changes_nothing_on_disk(tmp_path):
    save_checkpoint(tmp_path / "run", make_model(), WordTokenizer.train([WORDS]))
    (tmp_path / "run").rename(tmp_path / ".run.old")
    save_checkpoint(tmp_path / "next", make_model(1), WordTokenizer.train([WORDS]))
    (tmp_path / "next").rename(tmp_path / ".run.new")
    assert same(load_checkpoint(tmp_path / "run")[0], make_model(1))
    assert sorted(os.listdir(tmp_path)) == [".run.new", ".run.old"]


def test_a_neighbour_called_old_is_left_alone(tmp_path):
    (tmp_path / "run.old").mkdir()
    save_checkpoint(tmp_path / "run", make_model())
    save_checkpoint(tmp_path / "run", make_model())
    assert (tmp_path / "run.old").exists()


def test_a_full_disk_keeps_the_checkpoint_and_says_so(tmp_path):
    code = f"""
import resource, signal, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_training import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
save_checkpoint({str(tmp_path / "run")!r}, make_model(1), WordTokenizer.train([WORDS]))
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
try: save_checkpoint({str(tmp_path / "run")!r}, make_model(2), WordTokenizer.train([WORDS]))
except OSError as error: print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "could not be written" in said and "the one before it is kept" in said and said.count("\n") == 1
    assert same(load_checkpoint(tmp_path / "run")[0], make_model(1)) and os.listdir(tmp_path) == ["run"]


def test_a_rename_that_fails_keeps_the_checkpoint(monkeypatch, tmp_path):
    save_checkpoint(tmp_path / "run", make_model(1), WordTokenizer.train([WORDS]))
    rename, calls = checkpoints.Path.rename, []
    def busy(self, target):
        calls.append(self)
        if len(calls) == 2: raise OSError(16, "Device or resource busy")
        return rename(self, target)
    monkeypatch.setattr(checkpoints.Path, "rename", busy)
    with pytest.raises(OSError, match="resource busy.*the one before it is kept"): save_checkpoint(tmp_path / "run", make_model(2), WordTokenizer.train([WORDS]))
    assert load_checkpoint(tmp_path / "run") and (tmp_path / "run").exists()


def test_a_linked_directory_stays_linked(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for seed in (1, 2): save_checkpoint(tmp_path / "link", make_model(seed), WordTokenizer.train([WORDS]))
    assert (tmp_path / "link").is_symlink() and same(load_checkpoint(tmp_path / "link")[0], make_model(2))


def test_what_is_no_checkpoint_is_refused_as_it_was_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent is no folder"): load_checkpoint(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="owner/name is not a directory, and the Hub gave no config.json"): load_checkpoint("owner/name")


# --- resumed ---------------------------------------------------------------------------------------------------------

def test_resuming_from_every_checkpoint_ends_in_the_same_weights(corpus, unbroken, tmp_path):
    total = DataSchedule(STAGES, 96, 8, 0).total
    for update in (1, 4, total - 1):
        config = make_config(tmp_path / str(update))
        model, count = make_model(), 0
        def mortal(module, args):
            nonlocal count
            count += module.training
            if count == update: raise Killed
        model.register_forward_pre_hook(mortal)
        with pytest.raises(Killed): fit(model, corpus, STAGES, config)
        resumed = fit(make_model(seed=3).eval(), corpus, STAGES, config, resume=True) if update > 3 else fit(make_model().eval(), corpus, STAGES, config, resume=True)
        assert same(resumed.model, unbroken.model) and timeless(resumed.log) == timeless(unbroken.log)


def test_resuming_a_finished_run_returns_its_model_and_writes_nothing(corpus, unbroken):
    stamp = (unbroken.checkpoint_dir / "model.safetensors").stat().st_mtime_ns
    again = fit(make_model(seed=5), corpus, STAGES, make_config(unbroken.checkpoint_dir), resume=True)
    assert same(again.model, unbroken.model) and again.steps == unbroken.steps and again.log == unbroken.log
    assert again.model.config == make_model().config and not again.model.training
    assert (unbroken.checkpoint_dir / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("tied", [False, True])
def test_averages_and_tied_weights_come_back_from_a_checkpoint(tied, corpus, tmp_path):
    config = make_config(tmp_path / "run", checkpoint_every=1)
    done = fit(make_model(tie_embeddings=tied), corpus, STAGES, config)
    again = fit(make_model(seed=2, tie_embeddings=tied), corpus, STAGES, config, resume=True)
    saved, tokenizer = load_checkpoint(tmp_path / "run")
    assert same(done.model, again.model) and same(done.model, saved) and tokenizer.fingerprint() == corpus.tokenizer.fingerprint()
    kept = load_file(tmp_path / "run" / "training_state" / "tensors.safetensors")
    assert not kept["weights.embed_tokens.weight"].equal(kept["average.embed_tokens.weight"])


@pytest.mark.parametrize("change, named", [
    (dict(lr=2e-2), "lr"), (dict(seed=1), "seed"), (dict(ema_decay=0.0), "ema_decay"), (dict(batch_size=16), "batch_size"), (dict(optimizer="adamw"), "optimizer"), (dict(clip=2.0), "clip")])
def test_a_changed_config_is_refused(change, named, corpus, unbroken):
    with pytest.raises(ValueError, match=f"begun with another {named}"): fit(make_model(), corpus, STAGES, make_config(unbroken.checkpoint_dir, **change), resume=True)


def test_another_model_corpus_or_curriculum_is_refused(corpus, unbroken):
    config = make_config(unbroken.checkpoint_dir)
    for model, data, stages, named in ((make_model(hidden_size=16), corpus, STAGES, "model"), (make_model(), make_corpus(train=104), STAGES, "data"),
                                       (make_model(), corpus, STAGES[::-1], "stages"), (make_model(), replace(corpus, train=corpus.train.select(range(95, -1, -1))), STAGES, "data")):
        with pytest.raises(ValueError, match=f"begun with another .*{named}"): fit(model, data, stages, config, resume=True)


def test_what_the_weights_depend_on_by_rounding_only_may_change(corpus, unbroken, tmp_path):
    config = make_config(tmp_path / "run", checkpoint_every=1000)
    fit(make_model(), corpus, STAGES, config)
    fit(make_model(), corpus, STAGES, make_config(tmp_path / "run", gradient_accumulation=2, log_every=1, precision="bf16"), resume=True)


def test_a_damaged_state_is_refused_in_one_line(corpus, tmp_path):
    config = make_config(tmp_path / "run")
    fit(make_model(), corpus, STAGES, config)
    file = tmp_path / "run" / "training_state" / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged") as error: fit(make_model(), corpus, STAGES, config, resume=True)
    assert "\n" not in str(error.value)


def test_nothing_is_replaced_unasked(corpus, tmp_path):
    config = make_config(tmp_path / "run")
    fit(make_model(), corpus, STAGES[:1], config)
    with pytest.raises(FileExistsError, match="exists: give another one, resume it, or overwrite it"): fit(make_model(), corpus, STAGES[:1], config)
    assert fit(make_model(), corpus, STAGES, config, overwrite=True).steps == DataSchedule(STAGES, 96, 8, 0).total
    make_model().save_pretrained(tmp_path / "published")
    with pytest.raises(FileExistsError, match="no training_state"): fit(make_model(), corpus, STAGES, make_config(tmp_path / "published"), resume=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("x")
    for how in (dict(overwrite=True), dict(resume=True), {}):
        with pytest.raises(FileExistsError, match="is no checkpoint"): fit(make_model(), corpus, STAGES, make_config(tmp_path / "notes"), **how)
    assert os.listdir(tmp_path / "notes") == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    fit(make_model(), corpus, STAGES[:1], make_config(tmp_path / "empty"))


# --- no number -------------------------------------------------------------------------------------------------------

class Fragile(LatentCanvasModel):
    "From a given update on its loss, or only its gradient, is no number."
    def break_at(self, update, gradient):
        self.update, self.gradient, self.calls = update, gradient, 0
        return self

    def forward(self, *args, **options):
        logits, confidence, state = super().forward(*args, **options)
        if not self.training: return Prediction(logits, confidence, state)
        self.calls += 1
        if self.calls < self.update: return Prediction(logits, confidence, state)
        p = next(self.parameters()).sum()
        return Prediction(logits + ((p - p.detach()).sqrt() * 0 if self.gradient else p * math.nan), confidence, state)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(gradient, corpus, tmp_path):
    model = Fragile(make_model().config).break_at(6, gradient)
    with pytest.raises(ValueError, match=r"at step 6 \(stage 'one'\).*the checkpoint of step 5 is kept") as error: fit(model, corpus, STAGES, make_config(tmp_path / "run", checkpoint_every=1, log_every=50))
    assert "\n" not in str(error.value)
    assert all(p.isfinite().all() for p in load_checkpoint(tmp_path / "run")[0].parameters())
    assert json.loads((tmp_path / "run" / "training_state" / "progress.json").read_text())["step"] == 5


def test_without_a_checkpoint_it_says_that_there_is_none(corpus):
    with pytest.raises(ValueError, match="no checkpoint had been written"): fit(Fragile(make_model().config).break_at(2, False), corpus, STAGES, make_config())


# --- several parts and processes -------------------------------------------------------------------------------------

PLAIN = tuple(replace(stage, objective=replace(stage.objective, confidence_weight=0.0)) for stage in STAGES)
CLOSE = dict(atol=1e-5, rtol=0)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulated_batches_equal_whole_ones(parts, corpus):
    run = lambda **options: fit(make_model(dropout=0.0), corpus, PLAIN, make_config(optimizer="adamw", lr=1e-3, **options))
    whole, cut = run(), run(gradient_accumulation=parts)
    assert same(whole.model, cut.model, **CLOSE)
    for a, b in zip(timeless(whole.log), timeless(cut.log), strict=True): assert a == pytest.approx(b, abs=1e-4)


def padded_models():
    "Models whose losses average over positions, of which the parts of a batch have different numbers."
    special = dict(vocab_size=22, mask_token_id=22, pad_token_id=21, eos_token_id=20)
    gate = ImplicitRefinementConfig(**special, hidden_size=8, num_layers=1, num_heads=2, max_seq_len=12, dropout=0.0, diversity_weight=0.0, use_refine_gate=True)
    chunks = dict(vocab_size=22, pad_token_id=21, context_size=10, chunk_size=2, embed_dim=8, n_heads=2, dropout=0.0)
    yield "gate", lambda: ImplicitRefinementModel(gate)
    yield "next token", lambda: GPTModel(GPTConfig(22, hidden_size=8, num_layers=1, num_heads=2, max_seq_len=12, dropout=0.0, pad_token_id=21, bos_token_id=20))
    yield "chunk baseline", lambda: ChunkBaseline(ChunkTRMConfig(**chunks))
    yield "chunk-TRM", lambda: ChunkTRM(ChunkTRMConfig(**chunks))


@pytest.mark.parametrize("name", ["gate", "next token", "chunk baseline", "chunk-TRM"])
def test_means_over_positions_weigh_parts_by_what_they_average_over(name):
    """Rows of one to twelve tokens, so that equally long parts hold unequally many."""
    ids = torch.randint(20, (8, 12), generator=torch.Generator().manual_seed(0))
    ids[torch.arange(12) > torch.arange(8)[:, None] * 11 // 7] = 21
    schedule = DataSchedule((Stage("all", epochs=3, data_fraction=1.0),), 8, 8, 0)
    def run(**options):
        torch.manual_seed(0)
        trainer = BaseTrainer(dict(padded_models())[name](), Canvases(ids), schedule, make_config(optimizer="adamw", lr=1e-3, clip=1e9, ema_decay=0.0, **options))
        return trainer.model, trainer.update()
    (_, once), (_, parts) = run(), run(gradient_accumulation=8)
    assert once["loss"].item() == pytest.approx(parts["loss"].item(), abs=1e-5)
    assert once["grad_norm"].item() == pytest.approx(parts["grad_norm"].item(), rel=1e-4)


TWO = """
import os, sys
sys.path.insert(0, {tests!r})
from test_training import *
config = make_config({directory!r}, gradient_accumulation=2, optimizer="adamw", lr=1e-3)
result = fit(make_model(dropout=0.0), make_corpus(), PLAIN, config)
assert make_accelerator(config).num_processes == 2
assert torch.cuda.is_available() or torch.backends.mps.is_available() or make_accelerator(replace(config, device=None)).num_processes == 2
rank = int(os.environ["RANK"])
save_checkpoint({directory!r} + f"-{{rank}}", result.model)
with open({directory!r} + f"-{{rank}}/log.jsonl", "w") as file: file.write("".join(json.dumps(row) + chr(10) for row in result.log))
torch.distributed.destroy_process_group()
"""


def test_two_processes_agree_with_one(corpus, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO.format(tests=os.path.dirname(__file__), directory=str(tmp_path / "two")))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    assert done.returncode == 0, done.stderr[-3000:]
    settings = dict(optimizer="adamw", lr=1e-3)
    one = fit(make_model(dropout=0.0), corpus, PLAIN, make_config(tmp_path / "one", **settings))
    logs = [[json.loads(line) for line in open(tmp_path / f"two-{rank}" / "log.jsonl")] for rank in (0, 1)]
    for rank in (0, 1):
        other = LatentCanvasModel.from_pretrained(tmp_path / f"two-{rank}")
        assert same(one.model, other, **CLOSE)
    for a, b in zip(timeless(one.log), timeless(logs[0]), strict=True): assert a == pytest.approx(b, abs=1e-4)
    assert not any("valid_nats" in row for row in logs[1])
    assert timeless(row for row in logs[0] if "loss" in row) == timeless(logs[1])
    resumed = fit(make_model(seed=1, dropout=0.0), corpus, PLAIN, make_config(tmp_path / "two", **settings), resume=True)
    assert same(one.model, resumed.model, **CLOSE)


# --- schedule, average, optimisers -----------------------------------------------------------------------------------

@given(total=st.integers(1, 500), warmup=st.integers(0, 600), floor=st.floats(0, 1))
def test_the_learning_rate_rises_falls_and_stays_between_floor_and_peak(total, warmup, floor):
    config = TrainConfig(warmup_steps=warmup, min_lr_scale=floor)
    shares = [lr_scale(s, total, config) for s in range(total)]
    w = max(1, min(warmup, total))
    expected = [min(1, (s + 1) / w) * (floor + (1 - floor) * (1 + math.cos(math.pi * s / total)) / 2) for s in range(total)]
    assert shares == pytest.approx(expected)
    assert all(0 < share <= 1 for share in shares) if floor else all(0 <= share <= 1 for share in shares)
    tail = shares[w - 1:]
    assert all(a >= b for a, b in zip(tail, tail[1:])) and all(share >= floor - 1e-12 for share in tail)


def test_each_optimiser_follows_the_schedule_from_its_own_peak(corpus):
    config = make_config(lr=1e-2, muon_lr=3e-3)
    trainer = BaseTrainer(make_model(), Canvases(corpus.train), DataSchedule(STAGES, 96, 8, 0), config)
    for step in range(4):
        trainer.update()
        share = lr_scale(step, trainer.schedule.total, config)
        for optimizer, peak in zip(trainer.optimizers, (3e-3, 1e-2)): assert all(group["lr"] == pytest.approx(peak * share) for group in optimizer.param_groups)


def test_the_average_equals_its_formula(corpus):
    trainer = BaseTrainer(make_model(), Canvases(corpus.train), DataSchedule(STAGES, 96, 8, 0), make_config(ema_decay=0.5))
    average = {name: p.detach().clone().double() for name, p in trainer.model.named_parameters()}
    for step in range(1, 15):
        trainer.update()
        d = min(0.5, step / (step + 10))
        for name, p in trainer.model.named_parameters(): average[name] = d * average[name] + (1 - d) * p.detach().double()
    for name, p in trainer.average.items(): torch.testing.assert_close(p.double(), average[name], atol=1e-6, rtol=1e-5)


def test_muon_moves_the_matrices_of_all_blocks_and_nothing_else():
    model = make_model(num_prelude_layers=1, num_coda_layers=1)
    muon, adamw = make_optimizers(model, TrainConfig(optimizer="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    moved = lambda optimizer: {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
    assert moved(muon) == {n for n in names.values() if n.startswith(("prelude.", "coda.", "refine_block.layers.")) and n.endswith(("qkv.weight", "out.weight", "gate_up.weight", "down.weight"))}
    assert moved(muon) | moved(adamw) == set(names.values()) and not moved(muon) & moved(adamw)


def muon_steps(kind, steps=3):
    "A tall, a wide and a square matrix after some updates, and what the optimiser holds of them."
    g = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=g)) for shape in ((12, 5), (5, 12), (8, 8))]
    optimizer = kind(weights, lr=0.1, weight_decay=0.2)
    for _ in range(steps):
        for p in weights: p.grad = torch.randn(p.shape, generator=g)
        optimizer.step()
    return weights, optimizer.state_dict()["state"]


def test_muon_is_pytorchs_where_bf16_is_native(monkeypatch):
    monkeypatch.setattr(optimizers, "native_precision", lambda device: "bf16")
    for mine, theirs in zip(muon_steps(optimizers.Muon)[0], muon_steps(torch.optim.Muon)[0]): assert mine.equal(theirs)


def test_muon_in_fp32_takes_the_same_steps_and_multiplies_nothing_in_bf16(monkeypatch):
    monkeypatch.setattr(optimizers, "native_precision", lambda device: "fp32")
    class NoHalves(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            assert not any(isinstance(a, torch.Tensor) and a.dtype == torch.bfloat16 for a in args), op
            return op(*args, **(kwargs or {}))
    with NoHalves(): mine, held = muon_steps(optimizers.Muon)
    theirs, kept = muon_steps(torch.optim.Muon)
    for p, q in zip(mine, theirs): assert torch.allclose(p, q, atol=0.02)  # bf16 has two to three digits
    for i in kept: assert held[i].keys() == kept[i].keys() and held[i]["momentum_buffer"].equal(kept[i]["momentum_buffer"])
    group = optimizers.Muon([nn.Parameter(torch.zeros(2, 2))], lr=0.1).param_groups[0]
    for shape in ((7, 31), (31, 7), (9, 9)):
        values = torch.linalg.svdvals(optimizers.newton_schulz(torch.randn(shape, generator=torch.Generator().manual_seed(1)), group))
        assert 0.3 < values.min() and values.max() < 1.3


def test_muon_leaves_alone_what_has_no_gradient_and_returns_what_the_closure_returns():
    still, moved = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.eye(3))
    optimizer = optimizers.Muon([still, moved], lr=0.1)
    def closure():
        optimizer.zero_grad()
        loss = (moved**2).sum()
        loss.backward()
        return loss
    assert optimizer.step(closure).item() == 3.0
    assert still.equal(torch.ones(3, 3)) and not moved.equal(torch.eye(3))


def test_tied_and_frozen_weights_are_optimised_once_or_not_at_all():
    model = make_model(tie_embeddings=True)
    model.mask_embed.requires_grad_(False)
    (adamw,) = make_optimizers(model, TrainConfig())
    ids = [id(p) for group in adamw.param_groups for p in group["params"]]
    assert len(ids) == len(set(ids)) and id(model.mask_embed) not in ids
    assert all(group["weight_decay"] == 0 for group in adamw.param_groups if any(p.ndim < 2 for p in group["params"]))


def test_evaluating_puts_back_what_it_found_even_after_an_error():
    model, zero = make_model(tie_embeddings=True), {name: torch.zeros_like(p) for name, p in make_model(tie_embeddings=True).named_parameters()}
    before, pointers = make_model(tie_embeddings=True), [p.data_ptr() for p in model.parameters()]
    with pytest.raises(Killed), evaluation_weights(model, zero):
        assert not model.training and not any(p.any() for p in model.parameters())
        raise Killed
    assert model.training and same(model, before) and [p.data_ptr() for p in model.parameters()] == pointers


def test_clipping_scales_the_gradient_to_its_norm(corpus):
    run = lambda clip: BaseTrainer(make_model(dropout=0.0), Canvases(corpus.train), DataSchedule(STAGES, 96, 8, 0), make_config(optimizer="adamw", clip=clip))
    free, tight = run(1e6), run(1e-9)
    start = make_model(dropout=0.0)
    assert free.update()["grad_norm"].equal(tight.update()["grad_norm"])
    step = lambda trainer: max((p - q).abs().max().item() for p, q in zip(trainer.model.parameters(), start.parameters()))
    assert step(tight) < 0.2 * step(free)


# --- the plan --------------------------------------------------------------------------------------------------------

@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), canvases=st.integers(40, 200), batch_size=st.integers(1, 10), epochs=st.integers(1, 3), shares=st.lists(st.floats(0.25, 0.5), min_size=1, max_size=2))
def test_a_plan_reads_each_canvas_once_an_epoch_and_none_in_two_stages(seed, canvases, batch_size, epochs, shares):
    stages = tuple(Stage(str(i), epochs=epochs, data_fraction=share) for i, share in enumerate(shares))
    plan = DataSchedule(stages, canvases, batch_size, seed)
    rows = [plan.batch(s, 4) for s in range(plan.total)]
    for stage, share, steps in zip(stages, plan.shares, plan.steps):
        mine = [r for s, r, _, _ in rows if s is stage]
        per_epoch = steps // epochs
        assert len(mine) == steps and per_epoch == len(share) // batch_size
        for e in range(epochs): assert len(set(torch.cat(mine[e * per_epoch:(e + 1) * per_epoch]).tolist())) == per_epoch * batch_size
        assert {i for r in mine for i in r.tolist()} <= set(share.tolist())
    assert torch.cat(plan.shares).unique().numel() == sum(map(len, plan.shares))
    step = plan.total - 1
    assert all(a.equal(b) for a, b in zip(DataSchedule(stages, canvases, batch_size, seed).batch(step, 4)[1:3], rows[step][1:3]))
    with pytest.raises(IndexError, match=f"update {plan.total} "): plan.batch(plan.total, 4)


def test_the_seed_and_nothing_global_decides(corpus, unbroken):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = fit(make_model_untouched(), corpus, STAGES, make_config())
    assert torch.get_rng_state().equal(before) and same(again.model, unbroken.model)
    assert not same(fit(make_model(), corpus, STAGES, make_config(seed=1)).model, unbroken.model)


def make_model_untouched():
    with torch.random.fork_rng(): return make_model()


# --- the log ---------------------------------------------------------------------------------------------------------

def test_log_rows_have_their_fields_and_are_what_is_on_disk(unbroken):
    plan = DataSchedule(STAGES, 96, 8, 0)
    assert [json.loads(line) for line in open(unbroken.checkpoint_dir / "log.jsonl")] == unbroken.log
    losses, bounds = ([row for row in unbroken.log if key in row] for key in ("loss", "valid_nats"))
    assert len(losses) + len(bounds) == len(unbroken.log)
    for row in losses:
        parts = {"token_loss", "confidence_loss"} if row["stage"] == "two" else set()
        assert row.keys() == {"step", "stage", "loss", "grad_norm", "lr", *TIMES} | parts
        assert row["lr"] == pytest.approx(1e-2 * lr_scale(row["step"] - 1, plan.total, make_config()))
    for row in bounds:
        assert row.keys() == {"step", "stage", "valid_nats", "valid_nats_per_token", "valid_standard_error", "seconds"}
        assert row["valid_nats"] == pytest.approx(12 * row["valid_nats_per_token"]) and row["valid_standard_error"] > 0
    ends = [sum(plan.steps[:i + 1]) for i in range(2)]
    assert [row["step"] for row in bounds] == sorted({*range(5, plan.total + 1, 5), *ends})
    assert {4, 8, 12, *ends} <= {row["step"] for row in losses}
    assert all(a["seconds"] <= b["seconds"] for a, b in zip(unbroken.log, unbroken.log[1:]))
    assert all(json.loads(json.dumps(row, allow_nan=False)) == row for row in unbroken.log)


def test_a_row_averages_the_updates_since_the_last_one(corpus):
    every, fourth = (fit(make_model(), corpus, STAGES, make_config(log_every=n, validate_every=1000)).log for n in (1, 4))
    single = {row["step"]: row["loss"] for row in every if "loss" in row}
    last = 0
    for row in fourth:
        if "loss" not in row: continue
        assert row["loss"] == pytest.approx(sum(single[s] for s in range(last + 1, row["step"] + 1)) / (row["step"] - last), rel=1e-5)
        last = row["step"]


def test_validation_is_of_the_weights_that_are_kept(corpus, unbroken):
    ids = torch.as_tensor(corpus.valid[:4]["ids"]).long()
    assert nll(unbroken.model, ids, draws=2, seed=0).mean().item() == pytest.approx(unbroken.log[-1]["valid_nats"], rel=1e-9)


def test_another_bound_can_be_asked_for_and_one_text_has_no_nan(corpus):
    seen = []
    def bound(model, ids, draws, seed):
        seen.append((model.training, ids.shape, draws, seed))
        return torch.full((len(ids),), 2.5)
    log = fit(make_model(), corpus, STAGES[:1], make_config(validation_texts=1), measure=bound).log
    assert set(seen) == {(False, (1, 12), 2, 0)} and log[-1]["valid_nats"] == 2.5 and log[-1]["valid_standard_error"] == 0


def test_the_bar_shows_stage_loss_and_speed(corpus, capsys):
    fit(make_model(), corpus, STAGES, make_config(progress=True))
    shown = capsys.readouterr().err
    assert re.search(r"LatentCanvasModel, stage 2 of 2, two: 100% of 18 updates, \d\d:\d\d left, loss \d+\.\d{3}\n$", shown), shown
    fit(make_model(), corpus, STAGES, make_config())
    assert capsys.readouterr().err == ""


# --- refused ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("values", [dict(num_refine_steps=0), dict(mask_ratio=(0.0, 1.0)), dict(mask_ratio=(0.9, 0.1)), dict(confidence_weight=-1), dict(confidence_weight=math.nan), dict(weighting="mean")])
def test_objectives_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))) as error: MaskedLM(**values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", [dict(epochs=0), dict(data_fraction=0), dict(data_fraction=1.5), dict(objective="mlm")])
def test_stages_that_make_no_sense_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))) as error: Stage("odd", **values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", [dict(batch_size=0), dict(gradient_accumulation=0), dict(log_every=0), dict(validate_every=0), dict(validation_texts=0), dict(validation_draws=0), dict(checkpoint_every=-1),
                                    dict(lr=0), dict(lr=math.nan), dict(muon_lr=-1), dict(clip=0), dict(weight_decay=-0.1), dict(seed=-1), dict(seed=2**32), dict(warmup_steps=-1), dict(min_lr_scale=2), dict(ema_decay=1.0), dict(precision="fp8"), dict(optimizer="sgd")])
def test_settings_that_make_no_sense_are_refused(values):
    (name, value), = values.items()
    with pytest.raises(ValueError, match=f"{name}.*{str(value)}") as error: TrainConfig(**values)
    assert "\n" not in str(error.value)


@dataclass
class BareConfig:
    vocab_size: int = 21
    model_type: str = "bare"


class Bare(PretrainedModel):
    "Knows its marginals and nothing else: the least a model has to bring."
    config_class = BareConfig

    def __init__(self, config):
        super().__init__()
        self.config, self.bias = config, nn.Parameter(torch.zeros(config.vocab_size))


@dataclass(frozen=True)
class Marginal:
    "An objective of one's own, for a model that keeps no promise at all."
    def __call__(self, model, batch): return {"loss": F.cross_entropy(model.bias.expand(*batch.ids.shape, -1).transpose(1, 2), batch.ids)}


BARE_STAGES = tuple(replace(stage, objective=Marginal()) for stage in STAGES)


def test_the_trainer_knows_nothing_of_models(corpus, tmp_path):
    bound = lambda model, ids, draws, seed: F.cross_entropy(model.bias.expand(*ids.shape, -1).transpose(1, 2), ids, reduction="none").sum(1)
    model = Bare(BareConfig(corpus.tokenizer.vocab_size))
    result = fit(model, corpus, BARE_STAGES, make_config(tmp_path / "run", optimizer="adamw", lr=0.1), measure=bound)
    bounds = [row["valid_nats"] for row in result.log if "valid_nats" in row]
    assert bounds[0] != bounds[-1] and same(load_checkpoint(tmp_path / "run")[0], result.model)
    for options, named in ((dict(), "has none: choose adamw"), (dict(optimizer="adamw", compile=True), "compiled_parts")):
        with pytest.raises(ValueError, match=named): fit(model, corpus, BARE_STAGES, make_config(**options), measure=bound)
    with pytest.raises(ValueError, match="Bare names no objective of its own"): fit(model, corpus, [Stage("whatever", data_fraction=1.0)], make_config(optimizer="adamw"), measure=bound)


def test_what_does_not_fit_together_is_refused_before_the_first_update(corpus):
    def refused(match, model=None, data=corpus, stages=STAGES, config=None, **how):
        with pytest.raises(ValueError, match=match) as error: fit(model or make_model(), data, stages, config or make_config(), **how)
        assert "\n" not in str(error.value)
    refused("don't belong together", model=make_model(vocab_size=30))
    refused("don't belong together", model=make_model(mask_token_id=3))
    refused("0 validation canvases", data=make_corpus(valid=0))
    refused("say where the checkpoint lies", resume=True)
    refused("stages is empty", stages=())
    refused("add up to 1.5", stages=(*STAGES, Stage("more", data_fraction=0.5)))
    refused("batch_size is 64", config=make_config(batch_size=64))
    refused("can't be cut in 3", config=make_config(gradient_accumulation=3))
    refused("device 'tpu'.*not available", config=make_config(device="tpu"))
    refused("fp16 needs a GPU", config=make_config(precision="fp16", optimizer="adamw"))
    refused("the canvas has 12 tokens", model=make_model(max_seq_len=8))


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    save_checkpoint(tmp_path / "run", make_model(), WordTokenizer.train(["only four words here"]))
    with pytest.raises(ValueError, match="don't belong together"): load_checkpoint(tmp_path / "run")
    with pytest.raises(FileNotFoundError): load_checkpoint(tmp_path / "nowhere")


# --- precision, compile, device --------------------------------------------------------------------------------------

def test_half_precision_trains_and_keeps_whole_weights(corpus):
    result = fit(make_model(), corpus, STAGES, make_config(precision="bf16"))
    assert {p.dtype for p in result.model.parameters()} == {torch.float32} and math.isfinite(result.log[-1]["valid_nats"])


@pytest.mark.parametrize("instructions, precision", [({"avx2": True, "avx512_f": True}, "fp32"), ({"avx2": True, "avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"),
                                                     ({"neon": True, "bf16": True}, "fp32"), ({"sve_bf16": True}, "bf16"), ({}, "fp32")])
def test_auto_takes_bf16_only_where_the_processor_multiplies_it(instructions, precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    assert native_precision("cpu") == resolve_precision("auto", torch.device("cpu")) == precision
    assert make_accelerator(TrainConfig(device="cpu")).mixed_precision == precision.replace("fp32", "no")
    with autocast("cpu"): assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    assert resolve_precision("fp32", "cpu") == "fp32" and resolve_precision("bf16", "cpu") == "bf16"


def test_auto_is_fp32_where_torch_cannot_say(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert native_precision("cpu") == "fp32" and native_precision("mps") == "fp32"


@pytest.mark.parametrize("native, precision", [(True, "bf16"), (False, "fp32")])
def test_auto_asks_a_gpu_for_more_than_emulation(native, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native and not including_emulation)
    assert native_precision("cuda:1") == precision


def test_progress_says_what_is_trained_how_far_and_how_long_yet(corpus, capsys):
    fit(make_model(), corpus, STAGES, make_config(progress=True))
    told = capsys.readouterr().err.split("\r")[-1]
    assert told.startswith("LatentCanvasModel, stage 2 of 2, two: 100% of 18 updates, ") and " left" in told


def test_a_second_run_may_ask_for_another_precision():
    for precision, kind in (("bf16", "bf16"), ("fp32", "no"), ("bf16", "bf16")): assert make_accelerator(TrainConfig(precision=precision, device="cpu")).mixed_precision == kind


@pytest.mark.slow
def test_compiled_blocks_train_as_plain_ones(corpus):
    run = lambda **options: fit(make_model(dropout=0.0), corpus, PLAIN, make_config(optimizer="adamw", lr=1e-3, **options))
    plain, fused = run(), run(compile=True)
    assert same(plain.model, fused.model, atol=1e-3, rtol=0)
    assert all(m._compiled_call_impl is None for m in fused.model.modules())


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_trains_resumes_and_leaves_the_generators_alone(precision, corpus, tmp_path):
    options = dict(device="cuda", precision=precision, optimizer="adamw")
    before = torch.cuda.get_rng_state()
    done = fit(make_model_untouched(), corpus, STAGES, make_config(tmp_path / "run", **options))
    assert next(done.model.parameters()).is_cuda and math.isfinite(done.log[-1]["valid_nats"])
    assert torch.cuda.get_rng_state().equal(before)
    again = fit(make_model(seed=1), corpus, STAGES, make_config(tmp_path / "run", **options), resume=True)
    assert same(done.model, again.model)
    assert next(fit(make_model(), corpus, STAGES, make_config()).model.parameters()).device.type == "cpu"


# --- the best weights, ranges of K, and what an update costs ---------------------------------------------------------

@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_best_weights_are_kept_also_over_a_kill(ema_decay, corpus, tmp_path):
    plan = DataSchedule(STAGES, 96, 8, 0)

    def run(directory, until=None, resume=False):
        seen = []
        def measure(model, ids, draws, seed):
            seen.append([p.detach().clone() for p in model.parameters()])
            step = len(seen) + (run.done if resume else 0)
            if until and step > until: raise KeyboardInterrupt
            return torch.full((len(ids),), abs(step - 2) + 1.0, dtype=torch.float64)
        try: result = fit(make_model(), corpus, STAGES, make_config(directory, keep_best=True, ema_decay=ema_decay, checkpoint_every=5), resume=resume, measure=measure)
        except KeyboardInterrupt: return seen, None
        return seen, result

    run.done = 0
    seen, result = run(tmp_path / "whole")
    assert len(seen) > 3 and all(p.equal(q) for p, q in zip(seen[1], result.model.parameters()))
    assert not all(p.equal(q) for p, q in zip(seen[-1], result.model.parameters()))
    assert same(load_checkpoint(tmp_path / "whole")[0], result.model)
    broken, none = run(tmp_path / "killed", until=3)
    assert none is None
    state = json.loads((tmp_path / "killed/training_state/progress.json").read_text())
    run.done = sum(1 for row in map(json.loads, (tmp_path / "killed/log.jsonl").read_text().splitlines()) if "valid_nats" in row)
    assert state["best_nats"] == 1.0 and same(load_checkpoint(tmp_path / "killed")[0], result.model)
    _, resumed = run(tmp_path / "killed", resume=True)
    assert same(resumed.model, result.model)
    assert plan.total == resumed.steps


def test_no_stage_changes_a_config_that_two_models_share(corpus, tmp_path):
    "The first stage refines once, the second twice; the config says four before and after, and validation uses it."
    model, seen = make_model(), []
    other = LatentCanvasModel(model.config)
    def measure(model, ids, draws, seed):
        seen.append(model.config.num_refine_steps)
        return torch.ones(len(ids), dtype=torch.float64)
    result = fit(model, corpus, STAGES, make_config(tmp_path / "run", keep_best=True), measure=measure)
    assert set(seen) == {4} and result.model.config is other.config and other.config.num_refine_steps == 4
    assert load_checkpoint(tmp_path / "run")[0].config == other.config


def test_without_keep_best_the_last_weights_are_kept(corpus):
    seen = []
    def measure(model, ids, draws, seed):
        seen.append([p.detach().clone() for p in model.parameters()])
        return torch.full((len(ids),), float(len(seen)), dtype=torch.float64)
    result = fit(make_model(), corpus, STAGES, make_config(ema_decay=0.0), measure=measure)
    assert all(p.equal(q) for p, q in zip(seen[-1], result.model.parameters())) and not all(p.equal(q) for p, q in zip(seen[0], result.model.parameters()))


@given(st.integers(1, 6), st.integers(0, 5), st.integers(0, 2**20))
@settings(max_examples=30)
def test_a_range_of_refinements_is_drawn_from_the_updates_number(low, width, seed):
    ranged = MaskedLM(num_refine_steps=(low, low + width))
    schedule = DataSchedule((Stage("s", ranged, data_fraction=1.0),), 64, 8, seed)
    seeds = [schedule.batch(step, 5)[3] for step in range(schedule.total)]
    assert len(set(seeds)) == len(seeds)
    for s in seeds: assert low <= ranged.draw_refine_steps(s) <= low + width and ranged.draw_refine_steps(s) == ranged.draw_refine_steps(s)
    assert {ranged.draw_refine_steps(s) for s in range(300)} == set(range(low, low + width + 1))


def test_a_range_reaches_the_model_and_leaves_the_config(corpus):
    class Counting(LatentCanvasModel):
        def forward(self, input_ids, num_refine_steps=None, state=None, at=None):
            if self.training: used.append(num_refine_steps)
            return super().forward(input_ids, num_refine_steps, state, at)
    used = []
    model = fit(Counting(make_model().config), corpus, (Stage("s", MaskedLM(num_refine_steps=(1, 3)), data_fraction=1.0),), make_config()).model
    assert set(used) == {1, 2, 3} and model.config.num_refine_steps == 4


@pytest.mark.parametrize("K", [0, (0, 2), (3, 2)])
def test_a_range_that_makes_no_sense_is_refused(K):
    with pytest.raises(ValueError, match="num_refine_steps is .*: give at least 1"): MaskedLM(num_refine_steps=K)


@pytest.mark.parametrize("length, layers", [(12, 1), (8, 2)])
def test_operations_are_those_of_the_products(length, layers):
    "By hand: 6 a weight and token in the block, attention's two products forwards and four backwards, the head at masked tokens only."
    model, B, D = make_model(num_layers=layers, dropout=0.0), 4, 8
    all_masked = lambda K: MaskedLM(num_refine_steps=K, mask_ratio=(1.0, 1.0))
    counted = {K: flops_per_update(model, all_masked(K), B, length) for K in (1, 2, 3)}
    matrices = sum(p.numel() for p in model.refine_block.parameters() if p.ndim == 2)
    assert counted[2] - counted[1] == counted[3] - counted[2] == 6 * matrices * B * length + layers * 6 * 2 * B * length * length * D
    assert flops_per_update(model, all_masked((1, 3)), B, length) == counted[3]
    assert all(p.grad is None for p in model.parameters())


def test_counting_leaves_generators_alone(corpus):
    model, before = make_model(), torch.get_rng_state()
    flops_per_update(model, STAGES[0].objective, 2, 12)
    assert before.equal(torch.get_rng_state())


# --- several updates a batch, and what follows each ------------------------------------------------------------------

@dataclass
class CarryConfig:
    vocab_size: int = 21
    supervision_steps: int = 3
    model_type: str = "carry"


class Carry(PretrainedModel):
    "Marginals that depend on a carried number, a frozen teacher that follows them, and notes of what was called."
    config_class = CarryConfig

    def __init__(self, config):
        super().__init__()
        self.config, self.bias, self.weight = config, nn.Parameter(torch.zeros(config.vocab_size)), nn.Parameter(torch.ones(config.vocab_size))
        self.teacher, self.notes = nn.Parameter(torch.zeros(config.vocab_size), requires_grad=False), []

    def default_objective(self): return Carried(self.config.supervision_steps)

    def loss(self, batch):
        self.notes.append((batch.ids, batch.noise, batch.state))
        carried = torch.zeros(len(batch.ids), 1) if batch.state is None else batch.state[0]
        logits = self.bias + torch.tanh(carried) * self.weight
        target = F.one_hot(batch.ids, self.config.vocab_size).float().mean(1)
        loss = F.cross_entropy(F.dropout(logits, 0.1, self.training), target)
        return {"loss": loss, "state": (carried + logits.mean(1, keepdim=True) + batch.noise[:, :1], carried + 1)}

    def after_update(self, moves):
        self.notes.append(moves)
        self.teacher.lerp_(self.bias.detach(), 0.3 if moves > 1 else 1.0)


@dataclass(frozen=True)
class Carried:
    supervision_steps: int
    def __call__(self, model, batch): return model.loss(batch)


CARRY_STAGES = (Stage("one", epochs=2, data_fraction=0.5), Stage("two", epochs=1, data_fraction=0.5))
still = lambda model, ids, draws, seed: torch.ones(len(ids))


def carry(directory=None, corpus=None, resume=False, model=None, **options):
    return fit(model or Carry(CarryConfig(22)), corpus, CARRY_STAGES, make_config(directory, optimizer="adamw", **options), measure=still, resume=resume)


def test_a_batch_is_supervised_as_often_as_the_model_says_with_detached_state(corpus):
    result = carry(corpus=corpus)
    assert result.steps == DataSchedule(CARRY_STAGES, 96, 8, 0).total
    calls, moves = ([n for n in result.model.notes if isinstance(n, kind)] for kind in (tuple, int))
    assert moves == list(range(1, 3 * result.steps + 1)) and len(calls) == len(moves)
    assert [isinstance(n, int) for n in result.model.notes] == [False, True] * len(moves)
    for i, (ids, noise, state) in enumerate(calls):
        first_ids, first_noise, _ = calls[i - i % 3]
        assert ids.equal(first_ids) and noise.equal(first_noise) and (state is None) == (i % 3 == 0)
        if state: assert not any(part.requires_grad for part in state) and state[1].equal(1 + (calls[i - 1][2][0] if i % 3 > 1 else torch.zeros(8, 1)))


def test_supervised_updates_equal_the_loop_written_out(corpus):
    ours, plain = Carry(CarryConfig(22)).eval(), Carry(CarryConfig(22)).eval()
    plan, config = DataSchedule(CARRY_STAGES, 96, 8, 0), make_config(optimizer="adamw", weight_decay=0.0, ema_decay=0.5)
    trainer, adamw = BaseTrainer(ours, Canvases(corpus.train), plan, config), torch.optim.AdamW([plain.bias, plain.weight], betas=(0.9, 0.95), weight_decay=0.0)
    average, moves = plain.bias.detach().clone(), 0
    for step in range(3):
        stage, rows, noise, _ = plan.batch(step, 12)
        batch, losses = Batch(torch.as_tensor(corpus.train[rows.tolist()]["ids"]), noise), []
        for _ in range(3):
            for group in adamw.param_groups: group["lr"] = config.lr * lr_scale(step, plan.total, config)
            out = plain.loss(batch)
            adamw.zero_grad()
            out["loss"].backward()
            nn.utils.clip_grad_norm_(plain.parameters(), config.clip)
            adamw.step()
            batch.state, moves = tuple(part.detach() for part in out["state"]), moves + 1
            average.lerp_(plain.bias.detach(), 1 - min(0.5, moves / (moves + 10)))
            losses.append(out["loss"].item())
        row = trainer.update()
        assert row["loss"].item() == pytest.approx(sum(losses) / 3, rel=1e-5) and row.keys() == {"loss", "grad_norm"}
        torch.testing.assert_close(ours.bias, plain.bias)
        torch.testing.assert_close(trainer.average["bias"], average)


def test_a_killed_run_of_several_updates_a_batch_ends_in_the_same_weights_and_teacher(corpus, tmp_path):
    unbroken = carry(tmp_path / "whole", corpus)
    for update in (2, 11, 3 * unbroken.steps - 1):
        model, count = Carry(CarryConfig(22)), 0
        loss = model.loss
        def mortal(*args):
            nonlocal count
            count += 1
            if count == update: raise Killed
            return loss(*args)
        model.loss = mortal
        with pytest.raises(Killed): carry(tmp_path / str(update), corpus, model=model)
        resumed = carry(tmp_path / str(update), corpus, resume=True)
        assert same(resumed.model, unbroken.model) and timeless(resumed.log) == timeless(unbroken.log)
        assert resumed.model.teacher.abs().sum() > 0


def test_parts_of_a_batch_carry_states_of_their_own(corpus):
    run = lambda **options: BaseTrainer(Carry(CarryConfig(22)).eval(), Canvases(corpus.train), DataSchedule(CARRY_STAGES, 96, 8, 0), make_config(optimizer="adamw", lr=1e-3, **options))
    whole, cut = run(), run(gradient_accumulation=4)
    for _ in range(3): a, b = whole.update(), cut.update()
    assert same(whole.model, cut.model, **CLOSE) and a["loss"].item() == pytest.approx(b["loss"].item(), abs=1e-5)
    assert {len(n[2][0]) for n in cut.model.notes if isinstance(n, tuple) and n[2]} == {2}


def test_another_number_of_supervised_steps_is_another_run(corpus, tmp_path):
    carry(tmp_path / "run", corpus)
    with pytest.raises(ValueError, match="begun with another model"): carry(tmp_path / "run", corpus, resume=True, model=Carry(CarryConfig(22, supervision_steps=2)))


def test_operations_of_all_supervised_steps_are_counted():
    @dataclass(frozen=True)
    class Deep:
        supervision_steps: int
        def __call__(self, model, batch): return STAGES[0].objective(model, batch) | {"state": (torch.zeros(1),)}
    model = make_model(dropout=0.0)
    once = flops_per_update(model, STAGES[0].objective, 4, 12)
    for steps in (1, 2, 5): assert flops_per_update(model, Deep(steps), 4, 12) == steps * once


# --- data of one's own -----------------------------------------------------------------------------------------------

def test_a_tensor_and_a_dataset_train_as_the_corpus_does(corpus, unbroken, tmp_path):
    ids, valid = (torch.as_tensor(part[:]["ids"]) for part in (corpus.train, corpus.valid))
    for data in (ids, ids.to(torch.int32), corpus.train):
        result = fit(make_model(), data, STAGES, make_config(), valid=valid)
        assert same(result.model, unbroken.model)
    kept = fit(make_model(), ids, STAGES, make_config(tmp_path / "run"), valid=corpus.valid, tokenizer=corpus.tokenizer)
    assert same(kept.model, unbroken.model) and load_checkpoint(tmp_path / "run")[1].fingerprint() == corpus.tokenizer.fingerprint()
    alone = fit(make_model(), ids, [Stage("all", data_fraction=1.0, epochs=1)], make_config())
    assert alone.steps == (96 - 4) // 8  # one canvas in twenty is kept for validation


def test_canvases_read_from_files_train_as_those_held(corpus, unbroken, monkeypatch):
    monkeypatch.setattr(canvases, "Canvases", lambda data, *args, **options: Canvases(data, held_bytes=0))
    assert same(fit(make_model(), corpus, STAGES, make_config()).model, unbroken.model)


@pytest.mark.parametrize("data, match", [(torch.rand(4, 12), "integers"), (torch.zeros(12, dtype=torch.int64), "integers"), (-torch.ones(4, 12, dtype=torch.int64), "ids count from 0"),
                                         (Dataset.from_dict({"tokens": [[1, 2]] * 4}), "columns tokens"), (torch.zeros(1, 12, dtype=torch.int64), "none to validate on")])
def test_canvases_that_are_none_are_refused(data, match):
    with pytest.raises(ValueError, match=match): fit(make_model(), data, STAGES, make_config())


def test_one_other_canvas_is_other_data(corpus, unbroken):
    ids = torch.as_tensor(corpus.train[:]["ids"]).clone()
    ids[-1, -1] = (ids[-1, -1] + 1) % 20
    with pytest.raises(ValueError, match="begun with another data"):
        fit(make_model(), ids, STAGES, make_config(unbroken.checkpoint_dir), resume=True, valid=corpus.valid, tokenizer=corpus.tokenizer)


@pytest.mark.parametrize("change", [dict(validation_texts=8), dict(validate_every=6), dict(validation_draws=3)])
def test_how_it_is_validated_belongs_to_a_run_that_keeps_the_best(change, corpus, tmp_path):
    config = lambda **options: make_config(tmp_path / "run", keep_best=True, **options)
    fit(make_model(), corpus, STAGES, config())
    with pytest.raises(ValueError, match=f"begun with another {next(iter(change))}"): fit(make_model(), corpus, STAGES, config(**change), resume=True)


# --- one run at a time, and what is left alone -----------------------------------------------------------------------

def test_two_runs_into_one_directory_are_refused(corpus, tmp_path):
    directory = tmp_path / "run"
    def measure(model, ids, draws, seed):
        with pytest.raises(FileExistsError, match=f"is being written by another run .process {os.getpid()} "): fit(make_model(), corpus, STAGES, make_config(directory))
        return torch.ones(len(ids), dtype=torch.float64)
    result = fit(make_model(), corpus, STAGES, make_config(directory), measure=measure)
    assert same(load_checkpoint(directory)[0], result.model) and os.listdir(tmp_path) == ["run"]


def test_a_lock_of_a_dead_run_is_taken_over_and_of_another_host_is_not(tmp_path):
    lock = tmp_path / ".run.lock"
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True).stdout
    for text in (json.dumps({"pid": int(dead), "host": checkpoints.socket.gethostname()}), "", "{}", "no json"):
        lock.write_text(text)
        with checkpoints.lock_checkpoint(tmp_path / "run"): assert json.loads(lock.read_text())["pid"] == os.getpid()
        assert not lock.exists()
    lock.write_text(json.dumps({"pid": int(dead), "host": "elsewhere"}))
    with pytest.raises(FileExistsError, match="on elsewhere"), checkpoints.lock_checkpoint(tmp_path / "run"): pass
    lock.unlink()
    with pytest.raises(Killed), checkpoints.lock_checkpoint(tmp_path / "run"): raise Killed
    assert not lock.exists()


def test_an_accelerator_of_the_callers_is_left_alone(corpus):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)
    mine = Accelerator(mixed_precision="bf16", cpu=True)
    fit(make_model(), corpus, STAGES[:1], make_config(precision="fp32"))
    assert mine.mixed_precision == "bf16" and AcceleratorState().mixed_precision == "bf16" and mine.device.type == "cpu"
    AcceleratorState._reset_state(reset_partial_state=True)


# --- updates that are skipped ----------------------------------------------------------------------------------------

def skipping(corpus, skipped):
    "A trainer whose updates are skipped where `skipped` says so, as fp16's are."
    trainer = BaseTrainer(make_model(), Canvases(corpus.train), DataSchedule(STAGES, 96, 8, 0), make_config(ema_decay=0.5, optimizer="adamw"))
    class Optimizer:
        step_was_skipped = False
        def __init__(self, inner): self.inner, self.calls = inner, 0
        def step(self):
            self.step_was_skipped = skipped(self.calls)
            self.calls += 1
            if not self.step_was_skipped: self.inner.step()
        def zero_grad(self): self.inner.zero_grad()
    trainer.prepared = [Optimizer(optimizer) for optimizer in trainer.prepared]
    trainer.accelerator.scaler = type("Scaler", (), dict(unscale_=lambda self, optimizer: None, scale=lambda self, loss: loss))()
    return trainer


def test_a_skipped_update_moves_neither_average_nor_learning_rate(corpus):
    trainer = skipping(corpus, lambda n: n == 1)
    trainer.update()
    average, rate = {name: p.clone() for name, p in trainer.average.items()}, trainer.optimizers[0].param_groups[0]["lr"]
    trainer.update()
    assert all(p.equal(average[name]) for name, p in trainer.average.items()) and trainer.skipped == 1
    trainer.update()
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(trainer.peaks[0] * lr_scale(1, trainer.schedule.total, trainer.config)) != rate
    assert not all(p.equal(average[name]) for name, p in trainer.average.items()) and trainer.skipped_in_row == 0


def test_a_run_whose_every_update_is_skipped_is_dead(corpus, monkeypatch):
    monkeypatch.setattr(updates, "MOST_SKIPPED", 4)
    trainer = skipping(corpus, lambda n: True)
    for _ in range(3): trainer.update()
    with pytest.raises(ValueError, match="4 updates in a row overflowed in fp16"): trainer.update()
