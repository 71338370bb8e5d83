"""The text of HTML and PDF, by libraries in C and C++, in a process of their own (`engine.reader.apart`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


def html(page: str) -> Iterator[tuple[str, str]]:
    """Text and title of a page."""
    from resiliparse.extract.html2text import extract_plain_text  # pyright: ignore[reportMissingModuleSource]  # compiled
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(page)
    text = extract_plain_text(tree, main_content=True, preserve_formatting=True)
    text = text or extract_plain_text(tree, preserve_formatting=True)
    yield text, " ".join((tree.title or "").split())


def pdf(data: bytes) -> Iterator[tuple[str, str, int]]:
    """(text, why it has none, number of pages) of every page."""
    import pypdfium2

    document = pypdfium2.PdfDocument(data)
    with contextlib.closing(document):
        count = len(document)
        for number in range(count):
            try:
                yield document[number].get_textpage().get_text_bounded(), "", count
            except (pypdfium2.PdfiumError, UnicodeError) as error:
                yield "", str(error), count
