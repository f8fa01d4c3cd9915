"""The strip for paper: every cell once and inside the page, in bands of one width, in the book's style."""
import pytest
from hypothesis import given, strategies as st

from shimmer.strips import _even_bands, trajectory_strip
from shimmer.trajectories import cut_bands
from told import MASK_ID, WORDS, named, trajectory, two_rows


@pytest.fixture
def story(): return two_rows()


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_outside_the_batch_is_refused(story, row):
    with pytest.raises(ValueError, match=f"row is {row} and the trajectory has 2: give a row from 0 to 1"): trajectory_strip(story, WORDS, row)


def test_skipping_by_nothing_and_a_page_too_narrow_are_refused(story):
    with pytest.raises(ValueError, match="every is 0"): trajectory_strip(story, WORDS, every=0)
    with pytest.raises(ValueError, match="width is 3"): trajectory_strip(story, WORDS, width=3)


def test_a_canvas_without_anything_to_write_can_be_drawn():
    assert trajectory_strip(trajectory([[[0, 1, 2]]], [[1, 1, 1]]), WORDS)._repr_png_()


@given(st.lists(st.integers(2, 17), min_size=1, max_size=60), st.integers(17, 80))
def test_even_bands_are_no_more_and_no_wider_than_full_ones(columns, room):
    full, even = cut_bands(columns, room), _even_bands(columns, room)
    widest = lambda bands: max(sum(columns[i] for i in band) for band in bands)
    assert len(even) == len(full) and widest(even) <= widest(full) <= room and [i for band in even for i in band] == [*range(len(columns))]


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


def test_a_strip_is_drawn_twice_without_a_warning(recwarn):
    import matplotlib.pyplot as plt
    told = trajectory([[[MASK_ID, 1]], [[2, 1]]], [[False, True]])
    with plt.style.context("shimmer.book"):
        strip = trajectory_strip(told, WORDS)
        assert strip._repr_png_() == strip._repr_png_()
    assert not [str(w.message) for w in recwarn if "layoutgrid" in str(w.message)]
