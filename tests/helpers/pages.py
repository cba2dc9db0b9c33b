"""What tests of pages look at: tags, links and sections."""

import re
from html.parser import HTMLParser

from pipelines.report.run_data import ReportData

VOID = {"img", "meta", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects what a page refers to, and fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.ids, self.tags = [], [], [], []
        self.unnamed_images = 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[k] for k in ("src", "href", "xlink:href", "srcset") if k in values]
        self.unnamed_images += tag == "img" and "alt" not in values
        self.unnamed_images += tag == "svg" and not {"aria-label", "aria-hidden"} & set(values)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def bare(**values):
    """The data of a run of which only some is known."""
    return ReportData(name="bare", created="today", **values)


def section(page, name):
    """One section of a page."""
    return re.search(rf'<(section|header) id="{name}">.*?</\1>', page, re.DOTALL)[0]


def text_of(markup):
    """Markup without its tags."""
    return " ".join(re.sub(r"<[^>]*>", " ", markup).split())
