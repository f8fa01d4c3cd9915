"""What plays a trajectory: no frame is lost, nothing leaks out of its string, no file is overwritten."""
import html
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image

from shimmer.trajectories import KINDS
from shimmer.player import save_gif, save_player, trajectory_player
from shimmer.samplers import Trajectory
from shimmer.tokenizers import CharTokenizer
from shimmer.trajectories import frames_of
from told import MASK_ID, WORDS, Reader, any_names, any_titles, named, player_data, trajectories, trajectory, two_rows


@pytest.fixture
def story(): return two_rows()


# --- the player ---------------------------------------------------------------

@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_outside_the_batch_is_refused(story, row):
    with pytest.raises(ValueError, match=f"row is {row} and the trajectory has 2: give a row from 0 to 1"): trajectory_player(story, WORDS, row)


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_a_picture_that_stands_no_time_is_refused(story, seconds, tmp_path):
    with pytest.raises(ValueError, match="give a time above 0"): trajectory_player(story, WORDS, seconds_per_step=seconds)
    with pytest.raises(ValueError, match="0.02 to 100 seconds"): save_gif(story, WORDS, tmp_path / "a.gif", seconds_per_step=seconds)


def test_pads_are_hidden(story):
    assert "<pad>" not in html.unescape(trajectory_player(story, WORDS, 1))


def test_a_canvas_without_anything_to_write_can_be_played(tmp_path):
    run = trajectory([[[0, 1, 2]]], [[1, 1, 1]])
    assert len(player_data(trajectory_player(run, WORDS))["frames"]) == 1 and Image.open(save_gif(run, WORDS, tmp_path / "a.gif")).n_frames == 1


@settings(max_examples=60)
@given(any_names(), any_titles())
def test_no_token_gets_out_of_its_cell(names, title):
    run, tokenizer = trajectory([[[0, MASK_ID, 1, 7]], [[0, 2, MASK_ID, 6]]], [[1, 0, 0, 0]]), named(names)
    frames, plain = frames_of(run, tokenizer), Reader(trajectory_player(run, WORDS, title="t"))
    page = Reader(trajectory_player(run, tokenizer, title="t" + title))
    shown = [[cell.kind, cell.text.replace("\r", "\n")] for cell in frames.cells[-1]]
    assert [list(cell) for cell in page.cells] == shown
    assert [t for t in page.tags if t not in ("br", "wbr")].count("script") == plain.tags.count("script") == 2 and "b" not in page.tags and not page.open


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


def test_a_page_in_a_frame_follows_the_page_around_it(story, tmp_path):
    page = save_player(story, WORDS, tmp_path / "a.html").read_text(encoding="utf-8")
    assert "window.parent.document.body" in page and "quarto-dark" in page and "frame.style.height" in page and "try {" in page
    assert "color-scheme\"" not in page  # a page that declares one is given an opaque ground inside a frame that doesn't
    for light in ("body.quarto-light .shimmer", "body:not(.quarto-light) .shimmer", "body.quarto-dark .shimmer"): assert light in page
