"""Pages as a parser sees them."""

from __future__ import annotations

from html.parser import HTMLParser


class Elements(HTMLParser):
    """Counts elements, checks that they nest, and collects attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in {"meta", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def loads_nothing(page: str) -> None:
    """Asserts that a page has nothing that a browser would fetch, and forbids it too."""
    parsed = Elements(page)
    assert not {tag for tag, _ in parsed.seen} & {"link", "img", "iframe", "object", "a", "form", "base"}
    assert not [attributes for _, attributes in parsed.seen if attributes.keys() & {"src", "href", "action"}]
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in parsed.seen)
    assert "url(" not in page
