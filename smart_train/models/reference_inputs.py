"""Contents to compare two encoders with where no data set is at hand: texts, and drawn pages for who can see."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw

from smart_train.models.encoder import SmartEncoder
from smart_train.models.preprocessing import Role

QUERIES = [
    "what is on the chart",
    "An invoice with its total amount due!",
    "Wie hoch war der Umsatz im Jahr 2024?",
    "engine",
]
DOCUMENTS = [
    "A yearly revenue chart by region; the company's winter report names a harbour, a bridge and a copper engine.",
    "Table 3. Total amount due: 1,234.50 (net), 20 % VAT.",
    "page",
    "L'été, les jours sont plus longs - et les nuits plus courtes.",
]
LONG = 1024  # tokens: a text over the limit shows whether both cut it alike; over a longer limit that takes too long


def sides_of(encoder: SmartEncoder) -> list[tuple[Role, list[Any]]]:
    """Queries and documents of every kind that the encoder takes."""
    documents: list[Any] = list(DOCUMENTS)
    limit = encoder.st.max_seq_length
    if limit is not None and limit <= LONG and "message" not in encoder.st.modalities:
        documents.append(" ".join(DOCUMENTS * (limit // 40 + 1)))
    if "image" in encoder.st.modalities:
        documents += [_page(320, 224, 3), {"text": "a chart of revenue", "image": _page(256, 352, 7)}]
    return [("query", list(QUERIES)), ("document", documents)]


def _page(width: int, height: int, bars: int) -> Image.Image:
    """White, with bars of different heights and colours and a frame."""
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    draw.rectangle((4, 4, width - 5, height - 5), outline="black")
    for bar in range(bars):
        left = 12 + bar * (width - 24) // bars
        top = height - 12 - (bar * 37 % (height - 40)) - 12
        draw.rectangle((left, top, left + (width - 48) // bars, height - 12), fill=(40 * bar % 256, 90, 200 - 20 * bar))
    return page
