"""Reading the pages of reports: their text, and what must hold for each of them."""

import base64
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path


class _Outline(HTMLParser):
    """Tags that are open, headings, and pictures of a page."""

    void = frozenset({"meta", "img", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.alts: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.alts.append(dict(attrs).get("alt"))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def text_of(page: str) -> str:
    """What a page says, on one line."""
    body = page[page.index("<body>") :]
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", body)))


def checked(path: Path) -> tuple[str, list[str]]:
    """The text and the headings of a page that is well formed, complete in itself, and has its pictures beside it."""
    page = path.read_text(encoding="utf-8")
    outline = _Outline()
    outline.feed(page)
    assert outline.open == []
    assert not re.search(
        r"""https?://|<script|<link|@import|url\(|\son\w+=["'\w]""", re.sub(r"base64,[^\"]+", "", page)
    )
    pictures = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert sorted(pictures) == sorted(file.read_bytes() for file in path.parent.glob("*.png"))
    assert len(outline.alts) == len(pictures)
    assert all(alt and len(alt) > 20 for alt in outline.alts)
    return text_of(page), outline.headings
