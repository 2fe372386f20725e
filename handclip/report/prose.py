"""The words of a report: a template for each section in `page/prose/`, in which every text has a name.

A text is a Jinja block, laid out like Markdown: blank lines part its paragraphs, `###` makes a heading of one,
`Missing:` and `Caution:` a note. Where lines end is of no account, and what a condition leaves empty is left out.
"""

import re
from collections.abc import Collection
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template

from handclip.plurals import counted

_PARAGRAPHS = "\N{PARAGRAPH SEPARATOR}"


class Prose:
    """The texts of one section.

    Args:
        section: its anchor, after which its template is named.
        values: what all of its texts may speak of.
    """

    def __init__(self, section: str, **values: Any) -> None:
        self._template = _template(section)
        self._values = values

    def paragraphs(self, name: str, /, **values: Any) -> list[str]:
        """Return the paragraphs of a text, filled in with values."""
        known = {**self._values, **values}
        # A text may quote another: {{ text("protocol") }}.
        known["text"] = lambda other, **more: self.text(other, **{**known, **more})
        text = "".join(self._template.blocks[name](self._template.new_context(known)))
        return [paragraph for part in text.split(_PARAGRAPHS) if (paragraph := part.strip())]

    def text(self, name: str, /, **values: Any) -> str:
        """Return a text of one paragraph; empty where a condition leaves it out."""
        return " ".join(self.paragraphs(name, **values))


def percent(value: float) -> str:
    """Return a fraction as percent with one decimal, without the sign."""
    return f"{100 * value:.1f}"


@cache
def _template(section: str) -> Template:
    # The page escapes what it shows; here it is text.
    environment = Environment(loader=FunctionLoader(_source), undefined=StrictUndefined, autoescape=False)
    environment.globals["counted"] = counted
    environment.filters |= {
        "percent": percent,
        "shown": lambda value: "-" if value is None else percent(value),
        "thousands": "{:,}".format,
        "labels": lambda runs: "; ".join(run.label for run in runs),
        "labels_of": _labels_of,
        "numbers": _numbers,
    }
    return environment.get_template(section)


def _labels_of(some: Collection[Any], runs: Collection[Any]) -> str:
    """Name some of the runs."""
    return "; ".join(run.label for run in some) if len(some) < len(runs) else "all runs"


def _numbers(runs: Collection[Any]) -> str:
    """Name runs by their numbers in the tables."""
    return f"run{'' if len(runs) == 1 else 's'} {', '.join(str(run.row.number) for run in runs)}"


def _source(section: str) -> str:
    """Return a template in which each paragraph is one line, so that the values filled in keep their own spaces.

    As in other templates, a line end after a tag is none.
    """
    paragraphs = re.split(r"\n\s*\n", re.sub(r"%}\n(?!\n)", "%}", _read(section)))
    return _PARAGRAPHS.join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _read(section: str) -> str:
    return files("handclip.report").joinpath("page", "prose", f"{section}.md.j2").read_text(encoding="utf-8")
