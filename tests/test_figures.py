"""The book's figures: one style, words to each, vector figures that are what the script draws, a player that needs nothing else."""
import importlib.util
import re
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib
import matplotlib.colors
import matplotlib.style
import pytest

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "nbs" / "images"
sys.path.insert(0, str(ROOT / ".ci"))

from book import notebooks, prose, read

PAGES = {"white": "#ffffff", "dark": "#222222"}


def luminance(colour):
    "Relative luminance as the web's accessibility guidelines have it."
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(colour)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def lightness(colour): return 116 * luminance(colour) ** (1 / 3) - 16


@pytest.fixture(scope="module")
def script():
    "The module .ci/draw_figures.py."
    spec = importlib.util.spec_from_file_location("draw_figures", ROOT / ".ci" / "draw_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def labelled():
    "Each label of a figure, where it stands, and the words it has."
    for path in notebooks():
        for cell in read(path).cells:
            if cell.cell_type == "code":
                for label in re.findall(r"^#\|\s*label:\s*(fig-\S+)", cell.source, re.MULTILINE):
                    yield label, path.name, "#| fig-cap:" in cell.source, "#| fig-alt:" in cell.source
            for caption, label, alt in re.findall(r"!\[(.*?)\]\([^)]*\)\{#(fig-[\w-]+)([^}]*)\}", cell.source, re.DOTALL):
                yield label, path.name, bool(caption), 'fig-alt="' in alt


def test_every_figure_has_a_label_of_its_own_a_caption_and_words_for_who_cannot_see_it():
    found = list(labelled())
    labels = [label for label, *_ in found]
    assert len(labels) > 30 and len(labels) == len(set(labels))
    assert not [figure for figure in found if not all(figure[2:])]


def test_every_figure_is_referred_to_where_it_stands():
    texts = {path.name: "\n".join(prose(cell.source) for cell in read(path).cells if cell.cell_type != "code") for path in notebooks()}
    assert not [(name, label) for label, name, *_ in labelled() if not re.search(rf"@{label}(?![\w-])", texts[name])]


def test_no_picture_is_without_a_label():
    for path in notebooks():
        for cell in read(path).cells:
            if cell.cell_type == "code" and any(kind.startswith("image/") for output in cell.outputs for kind in output.get("data", {})):
                assert "#| label: fig-" in cell.source, f"{path.name}: {cell.source[:80]}"
            if cell.cell_type == "markdown": assert not re.search(r"!\[[^\]]*\]\([^)]*\)(?!\{#fig-)", prose(cell.source)) or "badge" in cell.source, path.name


def test_the_style_reads_on_paper_on_a_dark_page_and_in_grey():
    style = matplotlib.style.library.get("shimmer.book") or matplotlib.rc_params_from_file(ROOT / "shimmer" / "book.mplstyle", use_default_template=False)
    ground = style["figure.facecolor"]
    assert ground == style["axes.facecolor"] and contrast(ground, style["text.color"]) > 10
    assert all(contrast(ground, style[name]) > 7 for name in ("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"))
    colours = style["axes.prop_cycle"].by_key()["color"]
    assert all(abs(lightness(a) - lightness(b)) > 10 for a, b in pairwise(colours))


def test_drawings_of_the_library_have_the_style_and_leave_the_user_his_own():
    from shimmer.curves import learning_curve
    before = dict(matplotlib.rcParams)
    curve = learning_curve([{"step": n, "stage": "one", "loss": 1 / n, "valid_nats": 20 + 1 / n} for n in range(1, 9)])
    assert dict(matplotlib.rcParams) == before
    with matplotlib.style.context("shimmer.book"): assert matplotlib.colors.to_hex(curve.get_facecolor()) == matplotlib.colors.to_hex(matplotlib.rcParams["figure.facecolor"])


def test_the_vector_figures_are_what_the_script_draws(script, tmp_path, monkeypatch):
    assert script.main(check=True) == 0
    monkeypatch.setattr(script, "IMAGES", tmp_path)
    assert script.main(check=True) == 1


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_lines_of_vector_figures_show_on_every_page_and_text_stands_on_light(script, page):
    assert contrast(script.LINE, page) > 3
    assert all(contrast(script.INK, fill) > 10 for fill in script.FILLS.values())


def test_vector_figures_bring_no_ground_no_date_and_no_font(script):
    for name in script.FIGURES:
        text = (IMAGES / f"{name}.svg").read_text()
        assert "<text" not in text and "dc:date" not in text
        assert re.search(r'id="patch_1">\s*<path[^>]*style="fill: none"', text)


def test_a_room_on_the_wrong_floor_or_on_none_is_refused(script, monkeypatch):
    needs = script.imports()
    assert script.floors().keys() == needs.keys()
    monkeypatch.setattr(script, "imports", lambda: needs | {"corpora": {"cli"}})
    with pytest.raises(ValueError, match="floors below"): script.floors()
    monkeypatch.setattr(script, "imports", lambda: needs | {"cellar": set()})
    with pytest.raises(ValueError, match="cellar"): script.floors()


def test_the_player_of_the_front_page_is_small_and_needs_nothing_else():
    page = (IMAGES / "refinement.html").read_text()
    assert len(page.encode()) < 300_000 and not re.search(r"(src|href)=|https?://|@import|fetch\(", page)
    index = "\n".join(cell.source for cell in read(ROOT / "nbs" / "index.ipynb").cells)
    assert 'src="images/refinement.html"' in index and "Once" in page
    readme = (ROOT / "README.md").read_text()
    assert "nbs/images/writing.gif" in readme and "iframe" not in readme and ":::" not in readme and "@fig-" not in readme


def test_the_gif_of_the_front_page_is_small_and_ends_with_both_panels_done():
    from PIL import Image
    path = IMAGES / "writing.gif"
    assert path.stat().st_size < 400_000
    with Image.open(path) as gif:
        assert gif.n_frames > 40 and gif.width >= 700
        frames = []
        for n in (0, gif.n_frames - 1):
            gif.seek(n)
            frames.append(gif.convert("RGB"))
    assert frames[0].tobytes() != frames[1].tobytes()
