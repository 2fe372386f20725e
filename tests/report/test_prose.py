"""The words of a report stand in templates, of which each text is used."""

from pathlib import Path

import pytest

import handclip.report
from handclip.report import prose
from handclip.report.prose import Prose

REPORT = Path(handclip.report.__file__).parent
TEMPLATES = sorted((REPORT / "page" / "prose").glob("*.md.j2"))
TEMPLATE = """
{% block cost %}
### What {{ name }}
costs

It costs {{ text("price") }}
{%- if much %}, which is much{% endif %}
.

{% if much %}
Caution: Think twice.
{% endif %}
{% endblock %}

{% block price %}{{ price | thousands }} of them{% endblock %}
"""


@pytest.mark.parametrize("much", [True, False])
def test_texts_have_paragraphs_conditions_and_values_that_keep_their_own_spaces(
    monkeypatch: pytest.MonkeyPatch, much: bool, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(prose, "_read", lambda _: TEMPLATE)
    prose._template.cache_clear()
    request.addfinalizer(prose._template.cache_clear)
    paragraphs = Prose("made up", price=1234).paragraphs("cost", name="a  b\n\n### c", much=much)
    assert paragraphs[0] == "### What a  b\n\n### c costs"
    if much:
        assert paragraphs[1:] == ["It costs 1,234 of them, which is much.", "Caution: Think twice."]
    else:
        assert paragraphs[1:] == ["It costs 1,234 of them."]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name.split(".")[0])
def test_every_text_is_used(path: Path) -> None:
    name = path.name.split(".")[0]
    files = {"page": "report.py", "comparison": "matrix_text.py"}
    code = (REPORT / files.get(name, f"sections/{name}.py")).read_text() + path.read_text()
    for text in prose._template(name).blocks:
        base = text.removesuffix("_alt").removesuffix("_caption").removesuffix("_table")
        assert text in ("title", "question") or f'"{base}"' in code, f"{path.name}: nothing shows {text}"
