"Sudokus: the exact solver, puzzles with one solution, texts and their tokens, and canvases whose clues are never written."
import random
from collections import Counter

import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shimmer.appending import append_tokens
from shimmer.canvases import encode_corpus
from shimmer.corpora import load_corpus
from shimmer.corruption import Batch, draw_noise, predicted_tokens, real_tokens
from shimmer.gpt import GPTConfig, GPTModel
from shimmer.likelihood import duel_nll, left_to_right_nll, nelbo
from shimmer.lira import LatentCanvasConfig, LatentCanvasModel
from shimmer.objectives import MaskedLM, NextToken, Prism
from shimmer.player import draw_grid, save_solving, solving_frames
from shimmer.policies import EntropyBound, TopK
from shimmer.puzzles import CLUES, OPEN, WRITTEN, GridTokenizer, Sudoku, check_grid, dig, first_clash, is_held_out, join, load_sudoku, part, random_grid, rename, sample_puzzles, solutions, solve, solving_order
from shimmer.samplers import refine
from shimmer.tokenizers import check_contract, load_tokenizer, train_tokenizer

FOUR, SIX, NINE = Sudoku(2, 2), Sudoku(2, 3), Sudoku(3, 3)
KNOWN = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"  # Wikipedia's example
SOLVED = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def test_there_are_288_grids_of_four_digits_and_none_breaks_a_rule():
    found = solutions(FOUR, OPEN * 16, limit=1000)
    assert len(found) == len(set(found)) == 288
    for grid in found:
        for unit in FOUR.units: assert sorted(grid[cell] for cell in unit) == list("1234")


def test_a_known_puzzle_is_solved():
    assert solve(NINE, KNOWN) == SOLVED
    assert solve(NINE, KNOWN.replace(".", "0") + "\n") == SOLVED and solve(NINE, " ".join(KNOWN)) == SOLVED


@pytest.mark.parametrize("sudoku", [FOUR, SIX, Sudoku(3, 2), Sudoku(1, 5)])
def test_groups_are_a_latin_square_with_boxes(sudoku):
    n = sudoku.size
    for kind in range(3): assert Counter(groups[kind] for groups in sudoku.groups) == {i: n for i in range(n)}
    assert len(sudoku.units) == 3 * n and all(len(unit) == n for unit in sudoku.units)
    grid = random_grid(sudoku, random.Random(0))
    assert not first_clash(sudoku, grid)


@given(st.integers(0, 10**6), st.sampled_from([FOUR, SIX]))
@settings(max_examples=25, deadline=None)
def test_digging_leaves_one_solution_and_spares_no_clue(seed, sudoku):
    rng = random.Random(seed)
    grid = random_grid(sudoku, rng)
    puzzle = dig(sudoku, grid, rng)
    assert solutions(sudoku, puzzle) == [grid]
    for cell, sign in enumerate(puzzle):
        if sign != OPEN: assert len(solutions(sudoku, puzzle[:cell] + OPEN + puzzle[cell + 1 :])) == 2
    kept = dig(sudoku, grid, rng, clues=len(grid) - 3)
    assert kept.count(OPEN) == 3 and solve(sudoku, kept) == grid


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_solving_order_visits_each_open_cell_once_and_certain_cells_first(seed):
    rng = random.Random(seed)
    grid = random_grid(SIX, rng)
    puzzle = dig(SIX, grid, rng, clues=20)
    order = solving_order(SIX, puzzle, grid)
    assert sorted(order) == [cell for cell, sign in enumerate(puzzle) if sign == OPEN]
    naked = [cell for cell in order if len(set("123456") - {puzzle[o] for unit in SIX.units if cell in unit for o in unit}) == 1]
    if naked:  # the first cell is certain: alone possible there, or alone left for its digit in a unit
        first = order[0]
        hidden = any(all(puzzle[o] != OPEN or o == first or grid[first] in {puzzle[p] for u in SIX.units if o in u for p in u} for o in unit) for unit in SIX.units if first in unit)
        assert first in naked or hidden


@given(st.integers(0, 10**6), st.permutations("123456"))
@settings(max_examples=20, deadline=None)
def test_names_change_nothing_but_names(seed, names):
    rng = random.Random(seed)
    grid = random_grid(SIX, rng)
    text = join(dig(SIX, grid, rng), grid)
    other = rename(text, "".join(names))
    assert part(text)[1] == grid and check_grid(SIX, other) and is_held_out(part(other)[1]) == is_held_out(grid)
    assert solve(SIX, part(other)[0]) == part(other)[1]
    back = "".join(CLUES[names.index(digit)] for digit in "123456")
    assert rename(other, back) == text


def test_samples_are_solved_once_each_and_their_classes_kept_apart():
    train, valid = (list(sample_puzzles(SIX, 60, seed=3, held_out=held)) for held in (False, True))
    for texts, held in ((train, False), (valid, True)):
        assert texts == list(sample_puzzles(SIX, 60, seed=3, held_out=held)) != list(sample_puzzles(SIX, 60, seed=4, held_out=held))
        for text in texts:
            puzzle, grid = part(text)
            assert solve(SIX, puzzle) == grid and is_held_out(grid) == held and join(puzzle, grid) == text
    assert 8 <= min(sum(sign in CLUES for sign in text) for text in train)


def test_copies_are_one_puzzle_under_several_names():
    texts = list(sample_puzzles(SIX, 12, copies=4))
    shapes = [tuple(sign in CLUES for sign in text) for text in texts]
    assert len(set(texts)) == 12 and [len(set(shapes[i : i + 4])) for i in (0, 4, 8)] == [1, 1, 1] and len(set(shapes)) == 3


def test_clues_are_as_many_as_asked_for():
    counts = [sum(sign in CLUES for sign in text) for text in sample_puzzles(SIX, 30, clues=(14, 20))]
    assert set(counts) <= set(range(14, 21)) and len(set(counts)) > 3


def test_a_wrong_grid_is_told_which_cell():
    grid = solve(SIX, part(next(sample_puzzles(SIX, 1)))[0])
    assert check_grid(SIX, grid).ok
    swapped = grid[1] + grid[0] + grid[2:]
    assert "stands in its column already, at row" in check_grid(SIX, swapped).reason
    assert check_grid(SIX, OPEN + grid[1:]).reason == "row 1, column 1 is open"
    assert check_grid(SIX, grid[:-1]).reason == "35 cells, not 36"


@pytest.mark.parametrize("text, said", [
    ("12", "has 2 cells, a sudoku of 6 digits has 36"), ("7" + "." * 35, "'7' stands at row 1, column 1"), ("x" + "." * 35, "'x' stands"),
    ("1....1" + "." * 30, "the clues contradict: 1 at row 1, column 6 stands in its row already, at row 1, column 1"), ("." * 36, "several solutions: give more clues")])
def test_what_is_no_puzzle_is_refused(text, said):
    with pytest.raises(ValueError, match=said): solve(SIX, text)


def test_a_puzzle_without_solution_is_refused():
    "Row 1 leaves only 4 for its last cell, and column 4 has it."
    with pytest.raises(ValueError, match="no solution: change a clue"): solve(FOUR, "123....4........")


@pytest.mark.parametrize("sides", [(1, 1), (0, 3), (4, 4), (-2, -3)])
def test_boxes_that_make_no_grid_are_refused(sides):
    with pytest.raises(ValueError, match="give sides whose product is 2 to 9"): Sudoku(*sides)


@pytest.mark.parametrize("asked", [dict(clues=(5, 4)), dict(clues=(-1, 3)), dict(clues=(0, 37)), dict(copies=0)])
def test_numbers_of_clues_that_make_no_range_are_refused(asked):
    with pytest.raises(ValueError, match="give 0 <= least <= greatest <= 36"): next(sample_puzzles(SIX, 1, **asked))


@pytest.fixture(scope="module")
def corpus(): return load_corpus("sudoku-4", limit=40)


@pytest.fixture(scope="module")
def tok(corpus): return train_tokenizer(corpus, "grid")


def test_the_corpus_is_made_of_solved_puzzles(corpus, tok):
    assert corpus.documents and len(corpus.train) == 40 and len(corpus.valid) == 1000
    for row in corpus.train: assert check_grid(FOUR, row["text"])
    encoded = encode_corpus(corpus, tok, 17)
    assert encoded.train[0]["ids"].shape == (17,) and (encoded.train[:]["ids"][:, 16] == tok.eos_token_id).all()
    streamed = load_corpus("sudoku-4", limit=3, streaming=True)
    assert [row["text"] for row in streamed.train] == corpus.train[:3]["text"]


def test_an_unknown_sudoku_is_refused():
    for name in ("sudoku-5", "sudoku-x", "sudoku-66"):
        with pytest.raises(ValueError, match="choose sudoku-4, sudoku-6, sudoku-9"): load_corpus(name)


def test_the_tokenizer_keeps_the_contract_and_reads_open_cells_as_masks(corpus, tok, tmp_path):
    check_contract(tok, corpus.train[:10]["text"])
    assert [tok.token(i) for i in tok.given_token_ids] == list("1234") and tok.sudoku == FOUR
    assert tok.encode("1..b") == [0, tok.mask_token_id, tok.mask_token_id, 5]
    assert tok.encode("....") == [tok.mask_token_id] * 4 and tok.encode("") == []
    tok.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, GridTokenizer) and again.given_token_ids == tok.given_token_ids and again.fingerprint() == tok.fingerprint()
    with pytest.raises(ValueError, match="unknown sign"): tok.encode("5")


def test_a_typed_puzzle_is_a_canvas_and_a_canvas_is_shown_as_rows(tok):
    text = next(sample_puzzles(FOUR, 1))
    ids = tok.template(" ".join(part(text)[0]).replace(".", "_"))
    assert ids == [*tok.encode(part(text)[0]), tok.eos_token_id]
    shown = tok.display(text).splitlines()
    assert len(shown) == 4 and "".join(shown).replace(" ", "") == part(text)[1]
    assert "already" in tok.display(part(text)[1][1] + part(text)[1][0] + part(text)[1][2:])
    with pytest.raises(ValueError, match="several solutions"): tok.template("." * 16)


def small(tok, **options):
    torch.manual_seed(0)
    return LatentCanvasModel(LatentCanvasConfig(tok.vocab_size, hidden_size=16, num_layers=1, num_heads=2, num_refine_steps=3, max_seq_len=17, mask_token_id=tok.mask_token_id, pad_token_id=tok.pad_token_id, position_embedding=True, **{"given_token_ids": tok.given_token_ids, "reinject": True, **options})).eval()


@pytest.fixture(scope="module")
def ids(corpus, tok): return encode_corpus(corpus, tok, 17).train[:8]["ids"].long()


def test_given_tokens_are_neither_masked_nor_counted(tok, ids):
    model = small(tok)
    clues = ids < 4
    assert real_tokens(model.config, ids).all() and predicted_tokens(model.config, ids).equal(~clues) and clues.any(1).all()
    seen = []
    class Spy(LatentCanvasModel):
        def forward(self, input_ids, *args, **kw):
            seen.append(input_ids)
            return super().forward(input_ids, *args, **kw)
    spy = Spy(model.config)
    for objective in (MaskedLM((0.99, 1.0)), Prism((0.99, 1.0))): objective(spy, Batch(ids, draw_noise(*ids.shape, torch.Generator().manual_seed(0))))
    for canvas in seen: assert canvas[clues].equal(ids[clues])
    assert (seen[0] == tok.mask_token_id).sum() > (~clues).sum() * 0.9


def test_likelihoods_are_those_of_the_cells_given_the_clues(tok, ids):
    model, free = small(tok), small(tok, given_token_ids=())
    open_ = (~(ids < 4)).sum(1)
    exact = duel_nll(model, ids, TopK(k=1))
    assert (exact < duel_nll(free, ids, TopK(k=1))).all() and (exact > 0).all()
    assert (nelbo(model, ids, draws=4) < 2.5 * open_).all() and torch.isfinite(left_to_right_nll(model, ids)).all()
    uniform = torch.zeros_like(model.lm_head.weight)
    with torch.no_grad(): model.lm_head.weight.copy_(uniform)
    writable = tok.vocab_size - 4 - 1  # letters and the end; no clue, no pad
    torch.testing.assert_close(left_to_right_nll(model, ids), open_ * torch.log(torch.tensor(writable)).double())


def test_a_sampler_never_writes_a_clue(tok, ids):
    model = small(tok)
    with torch.no_grad(): model.lm_head.weight[:4].add_(1e3 * model.lm_head.weight[:4].sign())
    canvas = ids.masked_fill(ids >= 4, tok.mask_token_id)
    run = refine(model, canvas, EntropyBound(1.0), 20, seed=1)
    assert (run.ids[canvas == tok.mask_token_id] >= 4).all() and run.ids[ids < 4].equal(ids[ids < 4])


def test_a_gpt_reads_clues_and_neither_counts_nor_writes_them(tok, ids):
    torch.manual_seed(0)
    gpt = GPTModel(GPTConfig(tok.vocab_size, 16, 1, 2, 34, pad_token_id=tok.pad_token_id, bos_token_id=tok.eos_token_id, given_token_ids=tok.given_token_ids)).eval()
    seen = predicted_tokens(gpt.config, ids)
    logits = gpt.next_token_logits(ids)
    nats = torch.nn.functional.cross_entropy(logits[seen], ids[seen])
    torch.testing.assert_close(NextToken()(gpt, Batch(ids, torch.zeros(1)))["loss"], nats)
    with torch.no_grad(): gpt.embed_tokens.weight[:4] *= 100
    assert (append_tokens(gpt, ids[:, :9], 8, seed=0)[0][:, 9:] >= 4).all()


@pytest.mark.parametrize("wrong", [(99,), (-1,), "x", (12,)])
def test_given_tokens_that_are_none_are_refused(tok, wrong):
    with pytest.raises(ValueError, match="give ids of tokens, from 0 to"): LatentCanvasConfig(12, given_token_ids=wrong, mask_token_id=12)


def test_given_tokens_survive_a_checkpoint(tok, tmp_path):
    from shimmer.models import load_model
    small(tok).save_pretrained(tmp_path)
    assert load_model(tmp_path).config.given_token_ids == tok.given_token_ids


def test_every_refinement_is_supervised(tok, ids):
    "The loss is the mean of the losses after each refinement, the last of which is the plain one's."
    model, batch = small(tok), Batch(ids, draw_noise(*ids.shape, torch.Generator().manual_seed(0)))
    each = [MaskedLM(num_refine_steps=k)(model, batch)["loss"] for k in (1, 2, 3)]
    torch.testing.assert_close(MaskedLM(deep_supervision=True)(model, batch)["loss"], torch.stack(each).mean())
    torch.testing.assert_close(MaskedLM(deep_supervision=True, num_refine_steps=1)(model, batch)["loss"], each[0])
    said = model.denoise_each(ids, num_refine_steps=3)
    assert len(said) == 3 and said[-1].logits.equal(model(ids).logits) and not said[0].logits.equal(said[1].logits)
    coda = small(tok, num_coda_layers=1, num_prelude_layers=1)
    torch.testing.assert_close(coda.denoise_each(ids)[-1].logits, coda(ids).logits)
    torch.testing.assert_close(coda.denoise_each(ids)[0].logits, coda(ids, num_refine_steps=1).logits)


def test_deep_supervision_needs_a_model_that_refines(ids):
    from worlds import Table
    with pytest.raises(ValueError, match="has no denoise_each"): MaskedLM(deep_supervision=True)(Table(2, 3, 0), Batch(torch.zeros(1, 3, dtype=torch.int64), draw_noise(1, 3, torch.Generator())))


def test_a_solve_is_drawn_and_saved(tok, ids, tmp_path):
    model = small(tok)
    canvas = ids[:2].masked_fill((ids[:2] >= 4) & (ids[:2] < 8), tok.mask_token_id)
    run = refine(model, canvas, TopK(k=2), 20)
    frames = solving_frames(run, tok, 1)
    assert len(frames) == run.num_calls[1] + 1 and frames[0]["text"].count(OPEN) == (canvas[1] == tok.mask_token_id).sum()
    assert set(frames[-1]["text"]) <= set(CLUES + WRITTEN + OPEN) and frames[-1]["text"].count(OPEN) == (run.ids[1, :16] >= 8).sum()
    fig, ax = plt.subplots()
    draw_grid(ax, FOUR, frames[1]["text"], frames[1]["confidence"], wrong=[3], framed=[5])
    assert len(ax.texts) == 16 - frames[1]["text"].count(OPEN)
    plt.close(fig)
    path = save_solving(run, tok, tmp_path / "solve.gif", 1, part(tok.decode(ids[1]))[1])
    assert path.read_bytes()[:3] == b"GIF"
    with pytest.raises(FileExistsError): save_solving(run, tok, path, 1)
    with pytest.raises(ValueError, match="gif"): save_solving(run, tok, tmp_path / "solve.png", 1)


def test_the_corpus_by_name_is_the_corpus_by_function():
    assert load_sudoku("sudoku-4", 5).train["text"] == load_corpus("sudoku-4", 5).train["text"]
