"Requests, whether a tale obeys, their corpus and tokenizer, and weights that start from a model of tales."
import json

import pytest
import torch

from shimmer import cli, cli_train
from shimmer.checkpoints import load_checkpoint, start_from
from shimmer.corpora import load_corpus
from shimmer.corruption import predicted_tokens
from shimmer.instructions import ASKED, REQUEST_TOKENS, RequestTokenizer, check_obedience, facts_of, is_kept_apart, read_request, request, sample_requests
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.tales import CAST, Tales
from shimmer.tokenizers import check_contract, load_tokenizer


def every_request():
    for number in range(64):
        wanted = {name: CAST[name][(number + i) % len(CAST[name])] for i, name in enumerate(ASKED) if number >> i & 1}
        if "colour" not in wanted or "thing" in wanted: yield wanted


def test_every_request_is_read_back():
    texts = [request(wanted) for wanted in every_request()]
    assert [read_request(text) for text in texts] == list(every_request()) and len(set(texts)) == 48
    assert request({"feeling": "angry", "animal": "frog"}) == "An angry story about a frog."
    assert read_request("  A sad story\nabout Lily and a frog at the park. ") == {"feeling": "sad", "hero": "Lily", "animal": "frog", "place": "park"}


@pytest.mark.parametrize("text", ["", "A story about a dragon.", "Write a poem.", "A story about Lily and Tom.", "A sad story", "A story. A story."])
def test_what_is_no_request(text):
    with pytest.raises(ValueError, match="is no request that was taught: write one such as 'A sad story about Lily and a dog"): read_request(text)


@pytest.mark.parametrize("wanted, said", [({"hero": "Bob"}, "hero 'Bob' can't be asked for"), ({"problem": "lost"}, "problem 'lost' can't be asked for"), ({"colour": "red"}, "without a thing")])
def test_what_no_request_can_name(wanted, said):
    with pytest.raises(ValueError, match=said): request(wanted)


def test_obedience_is_decided_by_the_grammar():
    for tale in Tales().sample(20, seed=3):
        facts = facts_of(tale)
        wanted = {name: facts[name] for name in ASKED}
        assert check_obedience(wanted, tale) and check_obedience({}, tale)
        for name in ASKED:
            other = next(value for value in CAST[name] if value != facts[name])
            verdict = check_obedience({**wanted, name: other}, tale)
            assert not verdict and verdict.reason == f"{name}: {other!r} was asked for, the tale has {facts[name]!r}"
    assert not check_obedience({}, " ".join(wanted.values())) and facts_of("no tale") == {}


def test_pairs_obey_and_splits_share_no_pair():
    for held_out in (False, True):
        texts = list(sample_requests(120, seed=4, held_out=held_out))
        assert texts == list(sample_requests(120, seed=4, held_out=held_out)) and len(set(texts)) > 110
        for text in texts:
            asked, _, tale = text.partition("\n")
            assert check_obedience(read_request(asked), tale) and is_kept_apart(facts_of(tale)) == held_out
    named = [len(read_request(text.split("\n")[0])) for text in sample_requests(300)]
    assert 0.05 < named.count(0) / 300 < 0.2 and max(named) == 6


@pytest.fixture(scope="module")
def tokenizer(): return RequestTokenizer.train(sample_requests(400))


def test_requests_are_given_and_take_as_many_places(tokenizer, tmp_path):
    texts = list(sample_requests(40, seed=5)) + ["A tale without a request is words."[:6]]
    check_contract(tokenizer, texts[:-1])
    for text in texts[:-1]:
        ids = torch.tensor([tokenizer.encode(text)])
        assert predicted_tokens(tokenizer, ids)[0].tolist() == [at >= REQUEST_TOKENS for at in range(ids.shape[1])]
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert type(again) is RequestTokenizer and again.fingerprint() == tokenizer.fingerprint() and again.given_token_ids == tokenizer.given_token_ids
    assert all(len(tokenizer.prompt(request(wanted))) == REQUEST_TOKENS for wanted in every_request())
    with pytest.raises(ValueError, match="no request"): tokenizer.prompt("A poem.")


def test_the_corpus_by_name():
    corpus = load_corpus("tales-instruct", limit=30)
    assert len(corpus.train) == 30 and len(corpus.valid) == 1000 and corpus.documents
    assert all(is_kept_apart(facts_of(row["text"].split("\n")[1])) for row in corpus.valid.select(range(50)))


def longer(canvas, tokenizer, **options):
    shape = {name: getattr(canvas.config, name) for name in ("hidden_size", "num_layers", "num_heads", "num_refine_steps", "qk_norm", "position_embedding")} | options
    return LatentCanvasModel(LatentCanvasConfig(tokenizer.vocab_size, max_seq_len=REQUEST_TOKENS + 72, mask_token_id=tokenizer.mask_token_id, pad_token_id=tokenizer.pad_token_id, given_token_ids=tokenizer.given_token_ids, **shape))


def test_weights_start_from_a_model_of_tales(tokenizer):
    canvas, words = load_checkpoint("tales")
    model = longer(canvas, tokenizer)
    assert start_from(model, tokenizer, canvas, words) == []
    for id, piece in enumerate(tokenizer.pieces):
        if not piece.startswith("›"): assert model.embed_tokens.weight[id].equal(canvas.embed_tokens.weight[words.encode(piece)[0]])
    frog, asked = tokenizer.encode(" frog")[0], tokenizer.prompt("A story about a frog.")[-2]
    assert tokenizer.token(asked) == "› frog" and model.embed_tokens.weight[asked].equal(model.embed_tokens.weight[frog])
    assert model.lm_head.weight[tokenizer.eos_token_id].equal(canvas.lm_head.weight[words.eos_token_id])
    assert model.position_embed.weight[REQUEST_TOKENS:].equal(canvas.position_embed.weight) and model.mask_embed.equal(canvas.mask_embed)


def test_weights_that_cannot_be_taken_over(tokenizer):
    canvas, words = load_checkpoint("tales")
    with pytest.raises(ValueError, match="hidden_size is 64, and 128 in the model to start from"): start_from(longer(canvas, tokenizer, hidden_size=64), tokenizer, canvas, words)
    puzzles, grid = load_checkpoint("sudoku-6")
    with pytest.raises(ValueError, match="no token in common"): start_from(longer(canvas, tokenizer), tokenizer, puzzles, grid)


def test_training_and_writing_from_a_terminal(tmp_path, capsys):
    flags = "--corpus tales-instruct --init tales --hidden_size 128 --num_layers 2 --num_heads 4 --num_refine_steps 2 --position_embedding --qk_norm --num_samples 64 --stage_epochs 1 --batch_size 32 --no_progress --precision fp32 --validation_texts 8 --validation_draws 1"
    assert cli.main(["train", *flags.split(), "--checkpoint_dir", str(tmp_path), "--checkpoint_name", "obeys"]) == 0
    assert cli.main(["generate", "--checkpoint", str(tmp_path / "obeys"), "--prompt", "A sad story about Lily and a frog.", "--temperature", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "there was a" in out
    assert cli.main(["generate", "--checkpoint", str(tmp_path / "obeys"), "--prompt", "A story about a dragon."]) == 2
    assert "is no request that was taught" in capsys.readouterr().err
    assert cli.main(["train", "--corpus", "tales-instruct", "--init", "tales", "--hidden_size", "64", "--num_samples", "64", "--checkpoint_dir", str(tmp_path), "--checkpoint_name", "not"]) == 2
    assert "hidden_size is 64" in capsys.readouterr().err and not (tmp_path / "not").exists()
    assert cli.main(["evaluate", "--checkpoint", str(tmp_path / "obeys"), "--corpus", "tales-instruct", "--num_texts", "6", "--num_ordered", "1", "--draws", "1", "--num_written", "4", "--output", str(tmp_path / "obeys.json")]) == 0
    figures = json.loads((tmp_path / "obeys.json").read_text())
    assert "requests_obeyed" in json.dumps(figures) and "requests_obeyed" in capsys.readouterr().out
    options = cli_train.parse("--corpus tales-instruct --num_samples 64 --init tales".split())
    assert options.init == "tales"
