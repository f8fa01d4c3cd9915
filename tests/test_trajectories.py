"""Drawings of trajectories: nothing is lost, nothing leaks out of its string, nothing is overwritten."""
import html
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from rich.console import Console

from shimmer.curves import learning_curve, read_log, smooth
from shimmer.models import Prediction
from shimmer.samplers import Trajectory, generate_topk
from shimmer.tales import Tales
from shimmer.tokenizers import CharTokenizer
from shimmer.trajectories import END, KINDS, MASK, frames_of, quotation, save_gif, save_player, trajectory_html, trajectory_player, trajectory_strip, trajectory_table, trajectory_text

MASK_ID, PAD_ID, EOS_ID = 10, 8, 9


def named(names):
    "A tokenizer that shows ids by the given names."
    token = lambda i: {MASK_ID: "<mask>", PAD_ID: "<pad>", EOS_ID: "<eos>"}.get(int(i)) or names[int(i)]
    return SimpleNamespace(token=token, decode=lambda ids: "".join(token(i) for i in ids if int(i) < PAD_ID))


WORDS = named([" zero", " one", " two", " three", " four", " five", " six", " seven"])


def trajectory(canvases, given, confidence=None, num_calls=None):
    "A trajectory from its canvases, [S + 1][B][L]."
    canvases, given = torch.tensor(canvases), torch.tensor(given, dtype=torch.bool)
    calls, (rows, length) = len(canvases) - 1, canvases.shape[1:]
    confidence = torch.linspace(0, 1, calls * rows * length).view(calls, rows, length) if confidence is None else torch.tensor(confidence)
    num_calls = torch.full((rows,), calls) if num_calls is None else torch.tensor(num_calls)
    return Trajectory(canvases[-1], canvases, confidence, given, num_calls, ["canvas full"] * rows, MASK_ID, PAD_ID, EOS_ID)


@pytest.fixture
def story():
    "Two rows: the first is reopened and written again, the second is shorter, ends a call earlier, and has a pad."
    m, p, e = MASK_ID, PAD_ID, EOS_ID
    return trajectory([[[0, m, m, m], [1, m, m, p]], [[0, 2, 3, m], [1, 4, e, p]], [[0, 2, m, m], [1, 4, e, p]], [[0, 2, 5, e], [1, 4, e, p]]],
                      [[1, 0, 0, 0], [1, 0, 0, 1]], num_calls=[3, 1])


@st.composite
def trajectories(draw):
    "Any history of a canvas: written, rewritten, reopened, with given positions and pads."
    calls, rows, length = draw(st.integers(0, 4)), draw(st.integers(1, 2)), draw(st.integers(1, 7))
    cell = st.sampled_from([*range(8), EOS_ID, MASK_ID])
    canvases = [[[draw(cell) for _ in range(length)] for _ in range(rows)] for _ in range(calls + 1)]
    fixed = [[draw(st.booleans()) for _ in range(length)] for _ in range(rows)]
    for r in range(rows):
        for i in range(length):
            if fixed[r][i]:
                token = draw(st.sampled_from([0, 1, PAD_ID, EOS_ID]))
                for canvas in canvases: canvas[r][i] = token
    return trajectory(canvases, fixed, num_calls=[draw(st.integers(0, calls)) for _ in range(rows)])


class Reader(HTMLParser):
    "The texts of elements, scripts apart, as a browser would find them."
    def __init__(self, page):
        super().__init__()
        self.open, self.cells, self.scripts, self.tags = [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag in ("input", "meta", "br", "wbr"): return
        self.open.append((tag, dict(attributes)))
        if "tok" in (dict(attributes).get("class") or "").split() and "title" in dict(attributes): self.cells.append((dict(attributes)["class"].split()[1], ""))
        if tag == "script": self.scripts.append((dict(attributes).get("type"), ""))

    def handle_endtag(self, tag):
        if tag not in ("br", "wbr"): assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if not self.open: return
        tag, attributes = self.open[-1]
        if tag == "script": self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif "title" in attributes: self.cells[-1] = (self.cells[-1][0], self.cells[-1][1] + data)


def player_data(page):
    return json.loads(next(text for kind, text in Reader(page).scripts if kind == "application/json"))


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
    for text in (trajectory_text(story, WORDS, 1), trajectory_html(story, WORDS, 1), trajectory_player(story, WORDS, 1)): assert "<pad>" not in html.unescape(text)
    assert frames_of(story, WORDS, 0).calls == [0, 1, 2, 3]


@pytest.mark.parametrize("draw", [trajectory_text, trajectory_table, trajectory_html, trajectory_player, trajectory_strip])
@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_outside_the_batch_is_refused(story, draw, row):
    with pytest.raises(ValueError, match=f"row is {row} and the trajectory has 2: give a row from 0 to 1"): draw(story, WORDS, row)


def test_skipping_by_nothing_is_refused(story):
    for draw in (trajectory_text, trajectory_table, trajectory_html, trajectory_strip):
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


def test_a_canvas_without_anything_to_write_can_be_drawn(tmp_path):
    run = trajectory([[[0, 1, 2]]], [[1, 1, 1]])
    assert trajectory_text(run, WORDS).splitlines()[0] == "t=0: zero one two"
    assert trajectory_table(run, WORDS).row_count == 1 and len(player_data(trajectory_player(run, WORDS))["frames"]) == 1
    assert trajectory_strip(run, WORDS)._repr_png_() and Image.open(save_gif(run, WORDS, tmp_path / "a.gif")).n_frames == 1


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

NASTY = ["</script>", "<b>", "\"'", "&amp;", "<!--", "\n", "\u2028", "]]>"]


@settings(max_examples=60)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(NASTY), min_size=8, max_size=8), st.text(max_size=20) | st.sampled_from(NASTY))
def test_no_token_gets_out_of_its_cell(names, title):
    run, tokenizer = trajectory([[[0, MASK_ID, 1, 7]], [[0, 2, MASK_ID, 6]]], [[1, 0, 0, 0]]), named(names)
    frames, plain = frames_of(run, tokenizer), Reader(trajectory_player(run, WORDS, title="t"))
    page = Reader(trajectory_player(run, tokenizer, title="t" + title))
    shown = [[cell.kind, cell.text.replace("\r", "\n")] for cell in frames.cells[-1]]
    assert [list(cell) for cell in page.cells] == shown
    assert [t for t in page.tags if t not in ("br", "wbr")].count("script") == plain.tags.count("script") == 2 and "b" not in page.tags and not page.open
    table = Reader(trajectory_html(run, tokenizer, title="t" + title))
    assert len(table.cells) == 8 and "script" not in table.tags and not table.open


@given(trajectories())
def test_the_player_holds_every_frame(run):
    frames, data = frames_of(run, WORDS), player_data(trajectory_player(run, WORDS))
    assert data["calls"] == frames.calls and tuple(data["kinds"]) == KINDS and sorted(sum(data["words"], [])) == list(range(len(frames.positions)))
    for cells, stored in zip(frames.cells, data["frames"], strict=True):
        for cell, (token, kind, held, was) in zip(cells, stored, strict=True):
            assert data["tokens"][token] == cell.text and KINDS[kind] == cell.kind and (None if was is None else data["tokens"][was]) == cell.was
            assert held is None if cell.confidence is None else abs(held - cell.confidence) <= 5e-4


def test_the_player_needs_no_other_file_and_no_name_of_its_own(story):
    page = trajectory_player(story, WORDS)
    assert not re.search(r"https?:|//cdn|\bsrc=|\bhref=|@import|\bid=", page)


def test_a_notebook_shows_html_and_a_short_repr(story):
    page = trajectory_player(story, WORDS)
    assert page._repr_html_() == str(page) and len(repr(page)) < 60


# --- files --------------------------------------------------------------------

def test_a_gif_has_a_picture_for_every_call(story, tmp_path):
    for row, pictures in ((0, 4), (1, 2)):
        with Image.open(save_gif(story, WORDS, tmp_path / f"{row}.gif", row, seconds_per_step=0.2)) as gif:
            assert gif.n_frames == pictures
            gif.seek(0)
            assert gif.info["duration"] == 200
            gif.seek(pictures - 1)
            assert gif.info["duration"] == 1000


def test_gif_text_stays_inside(tmp_path):
    tokenizer = CharTokenizer.train(["abc \n"])
    ids = tokenizer.encode("abc " * 30 + "\n" + "c" * 60)
    canvases = torch.tensor([[[tokenizer.mask_token_id] * len(ids)], [ids]])
    run = Trajectory(canvases[-1], canvases, torch.full((1, 1, len(ids)), 0.5), canvases[0] != tokenizer.mask_token_id, torch.tensor([1]), ["canvas full"], tokenizer.mask_token_id)
    with Image.open(save_gif(run, tokenizer, tmp_path / "a.gif", width=320)) as gif:
        for n in range(2):
            gif.seek(n)
            picture = gif.convert("RGB")
            assert picture.width == 320
            assert (np.asarray(picture.crop((304, 40, 320, picture.height))) == 255).all()


@pytest.mark.parametrize("save, name", [(save_gif, "a.gif"), (save_player, "a.html")])
def test_files_are_not_overwritten(story, tmp_path, save, name):
    path = tmp_path / name
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"): save(story, WORDS, path)
    assert path.read_text() == "mine"
    assert save(story, WORDS, path, overwrite=True) == path and path.read_bytes() != b"mine"
    with pytest.raises(FileNotFoundError, match="make it first"): save(story, WORDS, tmp_path / "none" / name)
    with pytest.raises(ValueError, match="ending"): save(story, WORDS, tmp_path / "a.txt")
    with pytest.raises(ValueError, match="row is 5"): save(story, WORDS, path, row=5, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def test_a_saved_page_is_whole(story, tmp_path):
    page = save_player(story, WORDS, tmp_path / "a.html", title="<Eight & more>").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "<title>&lt;Eight &amp; more&gt;</title>" in page and not Reader(page.removeprefix("<!doctype html>")).open


# --- figures ------------------------------------------------------------------

def test_the_strip_shows_every_cell_once_and_inside_the_page():
    names = ["$x$", " one", " two", " three", " $\\frac$", " five", "␣", " seven"]
    ids = [*range(8)] * 8
    figure = trajectory_strip(trajectory([[[MASK_ID] * 64], [ids]], [[0] * 64]), named(names))
    bands = [ax for ax in figure.axes if ax.get_ylabel() == "call"]
    assert len(bands) > 1
    assert [text.get_text() for ax in bands for text in ax.texts] == [names[i].strip() for i in ids]
    assert all(0 <= ax.get_position().x0 and ax.get_position().x1 <= 1.001 for ax in figure.axes)
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_long_run_is_thinned_in_the_strip():
    run = trajectory([[[MASK_ID]]] * 80 + [[[3]]], [[0]])
    ax = trajectory_strip(run, WORDS).axes[0]
    assert len(ax.get_yticks()) <= 17 and ax.get_yticklabels()[-1].get_text() == "80"


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


def test_a_page_in_a_frame_follows_the_page_around_it():
    page = save_player_text()
    assert "window.parent.document.body" in page and "quarto-dark" in page and "frame.style.height" in page and "try {" in page
    assert "color-scheme\"" not in page  # a page that declares one is given an opaque ground inside a frame that doesn't
    for light in ("body.quarto-light .shimmer", "body:not(.quarto-light) .shimmer", "body.quarto-dark .shimmer"): assert light in page


def save_player_text():
    import tempfile
    from pathlib import Path
    with tempfile.TemporaryDirectory() as folder:
        told = trajectory([[[MASK_ID, 1]], [[2, 1]]], [[False, True]])
        return save_player(told, WORDS, Path(folder) / "a.html").read_text()


def test_a_strip_is_drawn_twice_without_a_warning(recwarn):
    import matplotlib.pyplot as plt
    told = trajectory([[[MASK_ID, 1]], [[2, 1]]], [[False, True]])
    with plt.style.context("shimmer.book"):
        strip = trajectory_strip(told, WORDS)
        assert strip._repr_png_() == strip._repr_png_()
    assert not [str(w.message) for w in recwarn if "layoutgrid" in str(w.message)]
