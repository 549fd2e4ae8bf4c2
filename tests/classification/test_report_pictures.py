"""What the report's pictures are made of."""

import io

import numpy as np
import pytest
from PIL import Image

from scalablevit.classification.report import charts, theme
from scalablevit.classification.report.figures import Label, Prediction
from scalablevit.classification.report.sheets import captions
from scalablevit.classification.report.theme import DARK, LIGHT, drawable, readable_on, shorten
from scalablevit.classification.report.thumbnails import SIDE, fill_square, read_thumbnail

CHARACTERS = "猫犬ねこ고양이"


@pytest.fixture
def machine_fonts(monkeypatch):
    """Matplotlib's own font, and a list to put names and files of the machine's into."""
    others = []
    monkeypatch.setattr(theme, "_FALLBACK_FONTS", ())
    monkeypatch.setattr(theme, "_machine_fonts", lambda: iter(others))
    fonts = theme.Fonts()
    monkeypatch.setattr(theme, "_fonts", lambda: fonts)
    known = list(theme.font_manager.fontManager.ttflist)
    yield others
    theme.font_manager.fontManager.ttflist[:] = known
    theme.font_manager.fontManager._findfont_cached.cache_clear()


def make_font(file, name, characters):
    """A font in which each of the characters is a black square."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(point)
    pen.closePath()
    builder = FontBuilder(1000)
    names = [".notdef", *(f"uni{ord(character):04X}" for character in characters)]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(character): name for character, name in zip(characters, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(file)
    theme.font_manager.fontManager.addfont(file)
    return name, str(file)


def test_what_no_font_has_is_replaced_and_said_once(machine_fonts, caplog):
    assert drawable("a$b\nc猫") == "a$b\N{REPLACEMENT CHARACTER}c\N{REPLACEMENT CHARACTER}"
    assert drawable("猫犬") == 2 * "\N{REPLACEMENT CHARACTER}"
    (record,) = caplog.records
    assert record.getMessage().startswith("No font of this machine has 猫, so that pictures show")


def test_a_font_of_the_machine_is_found_for_other_scripts(machine_fonts, tmp_path, caplog):
    (tmp_path / "damaged.ttf").write_text("no font")
    machine_fonts += [
        ("Damaged Sans", str(tmp_path / "damaged.ttf")),
        make_font(tmp_path / "boxes.ttf", "LastResort", CHARACTERS),
        make_font(tmp_path / "planted.ttf", "Planted Sans", CHARACTERS),
        make_font(tmp_path / "other.ttf", "Other Sans", CHARACTERS),
    ]
    with theme.canvas(LIGHT, 2, 1) as figure:
        figure.text(0.1, 0.4, drawable(CHARACTERS))
        drawn = np.asarray(Image.open(io.BytesIO(theme.to_png(figure))).convert("L"))
    assert not caplog.records
    assert theme._fonts().families == ["DejaVu Sans", "Planted Sans"]
    columns = np.flatnonzero((drawn < 60).any(0))
    assert len(columns) == pytest.approx(len(CHARACTERS) * 11.5 / 72 * theme.DPI, rel=0.05)  # squares side by side


def test_long_names_keep_both_ends():
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghijk", 6) == "abc…jk"


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_numbers_can_be_read_on_any_cell(colours):
    shares = np.array([[0.0, 1.0], [0.3, 0.6]])
    for colour in charts._confusion_colours(shares, colours).reshape(-1, 3):
        letters = theme.to_rgb(readable_on(tuple(colour), colours))
        low, high = sorted((theme._luminance(tuple(colour)), theme._luminance(letters)))
        assert (high + 0.05) / (low + 0.05) > 4


def test_right_and_wrong_have_colours_of_their_own():
    colours = charts._confusion_colours(np.array([[1.0, 0.0], [1.0, 0.0]]), LIGHT)
    assert colours[0, 0] == pytest.approx(theme.to_rgb(LIGHT.right))
    assert colours[1, 0] == pytest.approx(theme.to_rgb(LIGHT.wrong_area))
    assert colours[0, 1] == pytest.approx(theme.to_rgb(LIGHT.background))


def test_tiny_images_are_enlarged_without_blur():
    pixels = np.random.default_rng(0).integers(0, 255, (28, 28, 3), dtype=np.uint8)
    enlarged = np.asarray(fill_square(Image.fromarray(pixels), 28 * 6, "white"))
    assert (enlarged == pixels.repeat(6, 0).repeat(6, 1)).all()


def test_an_image_lies_in_the_middle_of_its_square():
    square = np.asarray(fill_square(Image.new("RGB", (400, 200), "black"), 100, "#ff0000"))
    assert (square[25:75] == 0).all()
    assert (square[:25] == [255, 0, 0]).all()
    assert (square[75:] == [255, 0, 0]).all()


def test_thumbnails_are_small_and_in_colour(tmp_path):
    Image.new("L", (4000, 10), 128).save(tmp_path / "wide.png")
    thumbnail = read_thumbnail(tmp_path / "wide.png")
    assert thumbnail.size == (SIDE, 1)
    assert thumbnail.mode == "RGB"
    assert read_thumbnail(tmp_path / "gone.png") is None


def test_captions_of_many_labels_are_cut():
    given = tuple(Label(name, 0.9) for name in "abcde")
    prediction = Prediction(
        index=0, given=given, actual=(Label("a", 0.9), Label("z", 0.1)), wrongness=0.9, multi_label=True
    )
    lines = captions(prediction)
    assert [line.text(10) for line in lines] == ["✓ a 90 %", "✗ b 90 %", "✗ c 90 %", "misses z 10 %", "and 2 more"]
    assert [line.right for line in lines] == [True, False, False, False, None]
