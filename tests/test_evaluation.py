"""What is measured of a checkpoint, and that it is what the metrics say."""
import json
import math
from dataclasses import replace

import pytest
import torch

import shimmer.evaluation as evaluation
from shimmer.calibration import calibration, confidence_at_filled, confidence_gap
from shimmer.corpora import load_corpus
from shimmer.evaluation import EvalConfig, auroc, compare_measured, confidence_figures, interval, likelihoods, measure_model, rows_at_once, scored_canvases, written_texts
from shimmer.gpt import GPTConfig, GPTModel
from shimmer.likelihood import bootstrap_interval, duel_nll, left_to_right_nll, nll
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.tokenizers import train_tokenizer

FEW = EvalConfig(num_texts=4, num_ordered=2, draws=2, num_written=5, seed=3)


@pytest.fixture(scope="module")
def tales(): return load_corpus("tales", limit=64)


@pytest.fixture(scope="module")
def tokenizer(tales): return train_tokenizer(tales, "word")


def models(tokenizer):
    torch.manual_seed(0)
    yield LatentCanvasModel(LatentCanvasConfig(tokenizer.vocab_size, hidden_size=16, num_heads=2, num_layers=1, num_refine_steps=1, max_seq_len=72, mask_token_id=tokenizer.mask_token_id, pad_token_id=tokenizer.pad_token_id)).eval()
    yield GPTModel(GPTConfig(tokenizer.vocab_size, hidden_size=16, num_heads=2, num_layers=1, max_seq_len=72, bos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)).eval()


def test_confidence_figures_are_the_metrics():
    torch.manual_seed(0)
    model = LatentCanvasModel(LatentCanvasConfig(8, hidden_size=16, num_heads=2, num_layers=1, max_seq_len=12))
    ids = torch.randint(0, 8, (40, 12))
    held, right = confidence_at_filled(model, ids, seed=2, ignore=3)
    figures = confidence_figures(model, ids, 3, 2)
    assert figures["ece_at_filled"] == calibration(held, right).ece and figures["confidence_gap_at_filled"] == confidence_gap(held, right) and len(figures) == 6


def test_likelihoods_are_what_their_names_say(tales, tokenizer):
    lira, gpt = models(tokenizer)
    ids, texts = scored_canvases(tales, lira, tokenizer, 4)
    assert ids.shape == (4, 72) and texts == list(tales.valid["text"])[:4]
    found = likelihoods(lira, ids, replace(FEW, full=True))
    assert [*found] == ["nll", "left_to_right", "duel_1", "duel_2", "duel_4"] and torch.equal(found["nll"], nll(lira, ids, draws=2, seed=3)) and torch.equal(found["left_to_right"], left_to_right_nll(lira, ids[:2]))
    for k in (1, 2, 4): assert torch.equal(found[f"duel_{k}"], duel_nll(lira, ids[:2], k=k))
    found = likelihoods(gpt, ids, FEW)
    assert torch.equal(found["nll"], left_to_right_nll(gpt, ids)) and torch.equal(found["left_to_right"], found["nll"][:2])


def test_words_that_a_checkpoint_does_not_know_are_named_with_their_place(tales, tokenizer):
    zebras = replace(tales, name="zebras", valid=tales.valid.map(lambda row: {"text": row["text"].replace("was", "zebra")}))
    with pytest.raises(ValueError, match="zebra.*in the validation texts of zebras: the checkpoint's tokenizer must know each word"): scored_canvases(zebras, next(models(tokenizer)), tokenizer, None)


def test_an_interval_needs_two_texts():
    nats, sizes = torch.tensor([2.0, 4.0, 5.0]), [4, 5, 6]
    value, low, high = bootstrap_interval(nats, sizes)
    assert interval("x", nats, sizes) == {"x": value, "x_95_percent": [low, high]}
    assert interval("x", nats[:1], sizes[:1]) == {"x": 0.5, "x_95_percent": None} == interval("x", nats[:1] / 4)


def test_texts_do_not_depend_on_how_many_are_written_at_once(tokenizer, monkeypatch):
    for model in models(tokenizer):
        together = written_texts(model, tokenizer, FEW)
        with monkeypatch.context() as few:
            few.setattr(evaluation, "AT_ONCE", 2)
            assert written_texts(model, tokenizer, FEW) == together and len({*together}) > 1


def test_a_model_is_measured_and_compared_with_itself(tales, tokenizer):
    for model in models(tokenizer):
        measured = measure_model(model, tokenizer, tales, FEW, "mine")
        figures = measured.figures
        assert json.dumps(figures, allow_nan=False) and figures["checkpoint"] == "mine" and figures["canvases"] == 4 and figures["ordered_canvases"] == 2
        assert figures["nats_per_canvas"] == pytest.approx(measured.nats["nll"].mean().item()) and figures["likelihood"] == ("exact" if isinstance(model, GPTModel) else "at most (2 draws)")
        same = compare_measured(measured, measured)
        assert same["nll_nats_per_canvas"] == 0 and same["nll_nats_per_canvas_95_percent"] == [0, 0]


def test_models_of_other_canvases_are_compared_by_a_note(tales, tokenizer):
    lira, gpt = (measure_model(model, tokenizer, tales, FEW) for model in models(tokenizer))
    other = gpt._replace(canvases=("another", (4, 72)))
    assert "compare bits per byte only" in compare_measured(lira, other)["note"]


def test_a_budget_of_memory_says_how_many_texts_are_written_together():
    big = LatentCanvasModel(LatentCanvasConfig(1000, hidden_size=16, num_heads=2, num_layers=1, max_seq_len=256))
    assert rows_at_once(big) == 299 and rows_at_once(big, 10**6) == 1 and rows_at_once(big, 10**12) == 500
    assert rows_at_once(GPTModel(GPTConfig(1000, hidden_size=16, num_heads=2, num_layers=1, max_seq_len=256))) == 500


@pytest.mark.parametrize("options", [dict(num_texts=0), dict(num_ordered=-1), dict(draws=0), dict(num_written=0), dict(num_written=2**32), dict(draws=10**9)])
def test_numbers_that_make_no_sense_are_refused(options):
    (name, value), = options.items()
    with pytest.raises(ValueError, match=f"{name} is {value}: give 1 to"): EvalConfig(**options)


def test_auroc_of_all_alike_is_no_number():
    assert math.isnan(auroc(torch.rand(3), torch.ones(3, dtype=torch.bool)))
    with pytest.raises(ValueError, match="give one of each"): auroc(torch.rand(3), torch.ones(2, dtype=torch.bool))
