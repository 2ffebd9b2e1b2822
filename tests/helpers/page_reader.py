"""Reads a page's HTML: its elements, and the text inside each script that is not code."""

from html.parser import HTMLParser


class Reader(HTMLParser):
    """Elements with their attributes, and the text inside each script that is not code."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, str] = {}
        self.title = ""
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = "title" if tag == "title" else dict(attrs).get("id") or "" if tag == "script" else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "title":
            self.title += data
        elif self._inside:
            self.data[self._inside] = data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader
