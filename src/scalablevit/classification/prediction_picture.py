"""A prediction as a picture: the image, and its classes as bars beside it."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from scalablevit.classification.image_inputs import open_image
from scalablevit.classification.prediction import Prediction

HEIGHT = 480  # of the picture, in pixels, unless its classes need more
BARS = 520  # width of the part with the bars
MARGIN = 24
ROW, SMALLEST_ROW = 76, 24  # from one class to the next, at most and at least
INK, PALE, BLUE = "#1c2733", "#e6eaee", "#2f6fb2"


def draw(prediction: Prediction) -> Image.Image:
    """The picture.

    Raises:
        ValueError: If the image is not known, or can no longer be read.
    """
    if prediction.source is None:
        raise ValueError("the prediction does not know its image: make it from the image rather than from pixels")
    image = open_image(prediction.source, 3)
    # Small images are enlarged with their pixels as they are: blurred they would seem to hold more than they do.
    scale = min(HEIGHT / image.height, 1.5 * HEIGHT / image.width)
    resampling = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
    image = image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)), resampling)
    height = max(HEIGHT, MARGIN + SMALLEST_ROW * len(prediction.labels))
    picture = Image.new("RGB", (image.width + BARS, height), "white")
    picture.paste(image, (0, (HEIGHT - image.height) // 2))
    _draw_bars(ImageDraw.Draw(picture), prediction, image.width + MARGIN, height)
    return picture


def _draw_bars(pen: ImageDraw.ImageDraw, prediction: Prediction, left: int, height: int) -> None:
    row = min(ROW, (height - MARGIN) // len(prediction.labels))
    font = ImageFont.load_default(size=max(min(round(row * 0.34), 24), 8))
    width = BARS - 2 * MARGIN
    top = (height - row * len(prediction.labels)) // 2
    for label, probability in zip(prediction.labels, prediction.probabilities, strict=True):
        per_cent = f"{100 * probability:.1f} %"
        name = " ".join(label.split())  # a font measures a single line
        pen.text((left, top), shorten(name, font, width - font.getlength(per_cent) - MARGIN), INK, font)
        pen.text((left + width, top), per_cent, INK, font, anchor="ra")
        bar = (left, top + round(row * 0.5), left + width, top + round(row * 0.72))
        pen.rectangle(bar, PALE)
        pen.rectangle((bar[0], bar[1], left + max(round(width * probability), 1), bar[3]), BLUE)
        top += row


def shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """As much of a text as is not wider, with an ellipsis where some is left out."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
