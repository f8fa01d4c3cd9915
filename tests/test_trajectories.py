"""Drawings of trajectories: nothing is lost, nothing leaks out of its string."""
import html
import json
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from rich.console import Console

from shimmer.curves import learning_curve, read_log, smooth
from shimmer.models import Prediction
from shimmer.samplers import generate_topk
from shimmer.tales import Tales
from shimmer.trajectories import AMBER, END, MASK, PAPER, cut_bands, frames_of, quotation, tint, trajectory_html, trajectory_table, trajectory_text, words_of
from told import EOS_ID, MASK_ID, PAD_ID, WORDS, Reader, any_names, any_titles, named, trajectory, trajectories, two_rows


@pytest.fixture
def story(): return two_rows()


# --- the reading --------------------------------------------------------------

@given(trajectories())
def test_frames_agree_with_the_trajectory(run):
    for row in range(len(run.ids)):
        frames, last = frames_of(run, WORDS, row), int(run.num_calls[row])
        assert frames.calls == list(range(last + 1))
        pads = (run.canvases[0, row] == PAD_ID) & run.fixed[row]
        assert frames.positions == ((~pads).nonzero().flatten().tolist() or list(range(len(pads))))
        for call in range(1, last + 1):
            for cell, i in zip(frames.cells[call], frames.positions):
                assert (cell.kind == "written") == (bool(run.written[call - 1, row, i]) and not run.fixed[row, i])
                assert (cell.kind == "reopened") == (bool(run.reopened[call - 1, row, i]) and not run.fixed[row, i])
                assert (cell.confidence is None) == bool(run.fixed[row, i])
                if cell.kind in ("kept", "written"): assert cell.text == ({EOS_ID: END}.get(t := int(run.canvases[call, row, i])) or WORDS.token(t).strip())
                if cell.confidence is not None: assert abs(cell.confidence - run.confidence[call - 1, row, i].item()) < 1e-6


@given(trajectories(), st.integers(1, 6))
def test_skipping_calls_keeps_the_first_and_the_last(run, every):
    frames, whole = frames_of(run, WORDS, every=every), frames_of(run, WORDS)
    assert frames.calls[0] == 0 and frames.calls[-1] == whole.calls[-1] and set(frames.calls) == {c for c in whole.calls if c % every == 0} | {whole.calls[-1]}
    for before, after, n in zip(frames.calls, frames.calls[1:], range(1, 99)):
        for cell, i in zip(frames.cells[n], frames.positions):
            a, b = run.canvases[before, 0, i], run.canvases[after, 0, i]
            if not run.fixed[0, i]: assert (cell.kind == "reopened") == bool((a != MASK_ID) & (b == MASK_ID))


def test_pads_and_later_calls_of_other_rows_are_hidden(story):
    short = frames_of(story, WORDS, 1)
    assert short.calls == [0, 1] and short.positions == [0, 1, 2]
    for text in (trajectory_text(story, WORDS, 1), trajectory_html(story, WORDS, 1)): assert "<pad>" not in html.unescape(text)
    assert frames_of(story, WORDS, 0).calls == [0, 1, 2, 3]


@pytest.mark.parametrize("draw", [trajectory_text, trajectory_table, trajectory_html])
@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_outside_the_batch_is_refused(story, draw, row):
    with pytest.raises(ValueError, match=f"row is {row} and the trajectory has 2: give a row from 0 to 1"): draw(story, WORDS, row)


def test_skipping_by_nothing_is_refused(story):
    for draw in (trajectory_text, trajectory_table, trajectory_html):
        with pytest.raises(ValueError, match="every is 0"): draw(story, WORDS, every=0)


def test_spaces_stand_where_the_tokenizer_puts_them():
    run = lambda names: frames_of(trajectory([[[0, MASK_ID, MASK_ID]], [[0, 1, 2]]], [[0, 0, 0]]), named(names)).gaps
    assert run(["once", " upon", "s"]) == [False, True, False]
    assert run(["a", "b", "c"]) == [False, False, False]
    assert run(["play", "##ing", "cards"]) == [True, False, True]


class Dice(torch.nn.Module):
    "A denoiser that knows nothing."
    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(EOS_ID))
        self.config = SimpleNamespace(vocab_size=EOS_ID, mask_token_id=MASK_ID, pad_token_id=PAD_ID, max_seq_len=12)

    def denoise(self, ids, state=None, at=None): return Prediction(self.bias.expand(*ids.shape, -1), None, None).at(at)


def test_unequal_prompts_of_a_real_sampler():
    run = generate_topk(Dice(), [[0, 1, 2], [3]], gen_length=4, num_steps=2, eos_token_id=EOS_ID)
    assert [len(frames_of(run, WORDS, row).positions) for row in (0, 1)] == [7, 5]
    assert [cell.kind for cell in frames_of(run, WORDS, 1).cells[0]] == ["given"] + ["open"] * 4
    assert "<pad>" not in trajectory_text(run, WORDS, 1)


def test_a_canvas_without_anything_to_write_can_be_drawn():
    run = trajectory([[[0, 1, 2]]], [[1, 1, 1]])
    assert trajectory_text(run, WORDS).splitlines()[0] == "t=0: zero one two"
    assert trajectory_table(run, WORDS).row_count == 1


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(4, 40))
def test_bands_hold_every_position_and_fit_where_a_position_does(widths, room):
    bands = cut_bands(widths, room)
    assert [i for band in bands for i in band] == [*range(len(widths))]
    assert all(len(band) == 1 or sum(widths[i] for i in band) <= room for band in bands)


@given(trajectories())
def test_words_hold_every_cell_once(run):
    frames = frames_of(run, WORDS)
    assert sum(words_of(frames), []) == [*range(len(frames.positions))]


# --- plain signs --------------------------------------------------------------

def test_markers_and_arrows(story):
    lines = trajectory_text(story, WORDS).splitlines()
    assert [line.split() for line in lines if line.startswith("t=")] == [
        ["t=0:", "zero", MASK, MASK, MASK], ["t=1:", "zero", "[two]", "[three]", MASK],
        ["t=2:", "zero", "two", "~three~", MASK], ["t=3:", "zero", "two", "[five]", f"[{END}]"]]
    first, under = lines[0], lines[1]
    assert [i for i, c in enumerate(under) if c == "↑"] == [i for i, c in enumerate(first) if c == MASK][:2]
    assert lines[2].strip() == "2 of 3 change (66.7%)" and lines[-2:] == ["Stopped: canvas full", "Text: ' zero two five'"]


@given(trajectories(), st.integers(30, 90))
def test_lines_keep_to_their_width(run, width):
    assert all(len(line) <= width for line in trajectory_text(run, WORDS, width=width).splitlines()[:-2])


def test_the_table_reads_without_colour(story):
    console = Console(width=100, color_system=None, force_terminal=False)
    with console.capture() as capture: console.print(trajectory_table(story, WORDS))
    text = capture.get()
    assert "\x1b" not in text and "[two] [three]" in text and "~three~" in text and f"[five] [{END}]" in text and "canvas full" in text


def test_the_table_takes_tokens_for_text_not_markup():
    tokenizer = named(["[bold red]", "[/]", "[link=x]", "\\[", "d", "e", "f", "g"])
    console = Console(width=100, color_system=None)
    with console.capture() as capture: console.print(trajectory_table(trajectory([[[0, MASK_ID, MASK_ID, 3]], [[0, 1, 2, 3]]], [[1, 0, 0, 1]]), tokenizer))
    assert "[bold red]" in capture.get() and "[[/]]" in capture.get() and "[[link=x]]" in capture.get()


# --- HTML ---------------------------------------------------------------------

@settings(max_examples=60)
@given(any_names(), any_titles())
def test_no_token_gets_out_of_its_cell(names, title):
    table = Reader(trajectory_html(trajectory([[[0, MASK_ID, 1, 7]], [[0, 2, MASK_ID, 6]]], [[1, 0, 0, 0]]), named(names), title="t" + title))
    assert len(table.cells) == 8 and "script" not in table.tags and not table.open


def test_a_notebook_shows_html_and_a_short_repr(story):
    page = trajectory_html(story, WORDS)
    assert page._repr_html_() == str(page) and len(repr(page)) < 60


@given(st.floats(0, 1))
def test_the_tint_of_doubt_lies_between_paper_and_amber(held):
    assert all(min(a, b) <= part <= max(a, b) for part, a, b in zip(tint(held), PAPER, AMBER)) and tint(1.0) == tint(None) == PAPER


# --- learning curves ----------------------------------------------------------

LOG = [{"step": 10, "stage": "a", "loss": 3.0}, {"step": 20, "stage": "a", "loss": 2.0}, {"step": 20, "stage": "a", "valid_nats": 30.0, "valid_nats_per_token": 1.0},
       {"step": 30, "stage": "b", "loss": 1.0}, {"step": 40, "stage": "b", "loss": 0.5}, {"step": 40, "stage": "b", "valid_nats": 20.0}]


def test_the_learning_curve_draws_what_was_logged(tmp_path):
    loss, bound = learning_curve(LOG, entropy=15.0).axes
    assert [text.get_text() for text in loss.texts] == ["a", "b"]
    raw = [line.get_xydata().tolist() for line in loss.lines if line.get_alpha()]
    assert raw == [[[10, 3.0], [20, 2.0]], [[30, 1.0], [40, 0.5]]]
    assert bound.lines[0].get_xydata().tolist() == [[20, 30.0], [40, 20.0]] and bound.lines[1].get_ydata()[0] == 15.0
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG))
    assert read_log(tmp_path) == read_log(tmp_path / "log.jsonl") == read_log(LOG)


def test_the_learning_curve_draws_into_given_axes():
    axes = learning_curve(LOG).axes
    for ax in axes: ax.clear()
    assert learning_curve(LOG, ax=axes) is axes[0].figure
    with pytest.raises(ValueError, match="1 axes and this log has 2 panels"): learning_curve(LOG, ax=axes[0])


def test_logs_without_anything_to_draw_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the log has 0 rows"): learning_curve([])
    with pytest.raises(FileNotFoundError, match="log.jsonl"): learning_curve(tmp_path / "log.jsonl")
    with pytest.raises(FileNotFoundError, match="log.jsonl"): learning_curve(tmp_path)
    (tmp_path / "log.jsonl").write_text("step,loss\n")
    with pytest.raises(ValueError, match="JSON object"): learning_curve(tmp_path)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30), st.floats(0, 0.99))
def test_smoothing_stays_within_what_has_been_seen(values, weight):
    for n, mean in enumerate(smooth(values, weight)): assert min(values[: n + 1]) - 1e-9 <= mean <= max(values[: n + 1]) + 1e-9
    assert smooth(values, 0.0).tolist() == pytest.approx(values)


# --- quotations ------------------------------------------------------------------------------------------------------

class Visible(HTMLParser):
    "The text of a page, and what of it is marked."
    def __init__(self):
        super().__init__()
        self.text, self.marked, self.inside = "", [], False
    def handle_starttag(self, tag, attributes):
        self.inside = tag == "mark"
        if self.inside: self.marked.append("")
    def handle_endtag(self, tag): self.inside = False
    def handle_data(self, data):
        self.text += data
        if self.inside: self.marked[-1] += data


def visible(shown):
    parser = Visible()
    parser.feed(shown._repr_html_())
    parser.close()
    return parser


@given(st.text(max_size=80), st.lists(st.text("ab'\"<& .", min_size=1, max_size=6), max_size=3))
def test_a_quotation_is_the_text_whole_and_escaped(text, words):
    shown = quotation(text, Wrong("x: " + ", ".join(map(repr, words))))
    assert "".join(piece for piece, _ in shown.pieces) == text
    page = visible(shown)
    assert page.text == text + shown.verdict and "".join(page.marked) == "".join(piece for piece, wrong in shown.pieces if wrong)


class Wrong:
    def __init__(self, reason): self.reason = reason
    def __bool__(self): return False


def test_a_quotation_marks_whole_words_that_the_verdict_quotes():
    tale = "Once upon a time, there was a boy named Lily. She had a toyboy."
    shown = quotation(tale, Tales().check(tale))
    assert shown.verdict.startswith("wrong: pronoun: 'boy'") and [piece for piece, wrong in shown.pieces if wrong] == ["boy"]
    assert "a »boy« named" in repr(shown) and "»" not in repr(shown).split("named", 1)[1].split("(")[0]
    unread = quotation("It rained. And snowed.", Wrong("opening: \"It rained.\" is none of its lines"))
    assert [piece for piece, wrong in unread.pieces if wrong] == ["It rained."]


def test_a_right_tale_says_so_and_an_unjudged_text_says_nothing():
    tale = Tales().sample(1, seed=0)[0]
    right = quotation(tale, Tales().check(tale))
    assert right.verdict == "right" and "<mark" not in right._repr_html_() and repr(right).endswith("(right)")
    assert quotation("It's 'so'.").verdict == "" and "<mark" not in quotation("It's 'so'.")._repr_html_() and quotation("").pieces == [] and repr(quotation("")) == ""
    assert max(map(len, repr(right).splitlines())) <= 76 and "w" * 200 in repr(quotation("a " + "w" * 200))
