from pathlib import Path
from typing import Literal

import page_checks
import pytest
from every_block import write_every_block
from page_checks import CHECKS, visiting
from playwright.sync_api import Browser
from tiny_study import tiny_config

WIDTHS = (360, 1024, 2560)


@pytest.fixture(scope="session")
def every_block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_every_block(tmp_path_factory.mktemp("every_block"))


@pytest.fixture(scope="session")
def tiny_report(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run that was really trained and evaluated."""
    from handclip.report.report import write_report
    from handclip.runs.evaluate import evaluate
    from handclip.runs.train import train

    place = tmp_path_factory.mktemp("tiny_report")
    folders = {"output_dir": "train_logs", "save_dir": "saved_models", "eval_dir": "eval_logs"}
    places = {key: str(place / name) for key, name in folders.items()}
    trained = train(tiny_config(manifests, losses=[{"type": "cross_entropy"}], **places))
    evaluate(tiny_config(manifests, checkpoint=str(trained.checkpoint), **places))
    return write_report([place], place / "report").page


@pytest.fixture(params=["every_block", "tiny_report"])
def report(request: pytest.FixtureRequest) -> Path:
    page: Path = request.getfixturevalue(request.param)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_passes_every_check(
    browser: Browser, report: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    with visiting(browser, report, width=width, scheme=scheme) as visit:
        assert {check.__name__: check(visit) for check in CHECKS} == {check.__name__: [] for check in CHECKS}


@pytest.mark.parametrize("width", [360, 1440])
def test_the_contents_lead_to_each_section(browser: Browser, report: Path, width: int) -> None:
    with visiting(browser, report, width=width) as visit:
        links = visit.page.locator("nav a")
        targets = [link.get_attribute("href") for link in links.all()]
        assert targets == [f"#{section.get_attribute('id')}" for section in visit.page.locator("main section").all()]
        assert len(targets) >= 5
        for number, target in enumerate(targets):
            links.nth(number).click()
            visit.page.wait_for_function(
                """target => {
                    const top = document.querySelector(target).getBoundingClientRect().top;
                    const atEnd = scrollY + innerHeight >= document.documentElement.scrollHeight - 2;
                    return Math.abs(top) < 2 || (atEnd && top > 0 && top < innerHeight);
                }""",
                arg=target,
                timeout=5_000,
            )


def test_the_contents_stay_in_sight_on_a_wide_screen(browser: Browser, report: Path) -> None:
    with visiting(browser, report) as visit:
        visit.page.evaluate("scrollTo(0, document.documentElement.scrollHeight / 2)")
        assert visit.page.evaluate("document.querySelector('nav').getBoundingClientRect().top") == pytest.approx(0)


@pytest.mark.parametrize("width", WIDTHS)
def test_figures_are_neither_too_small_nor_too_large(browser: Browser, report: Path, width: int) -> None:
    with visiting(browser, report, width=width) as visit:
        sizes: list[tuple[float, int]] = visit.page.evaluate(
            "[...document.images].map(image => [image.getBoundingClientRect().width, +image.getAttribute('width')])"
        )
        assert sizes
        for shown, natural in sizes:
            assert min(640, natural) - 1 <= shown <= 1.3 * natural + 1


def test_the_page_changes_with_the_scheme(browser: Browser, every_block: Path) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        with visiting(browser, every_block, scheme=scheme) as visit:
            grounds.append(visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    assert grounds == ["rgb(253, 252, 250)", "rgb(22, 24, 27)"]


def test_paper_has_no_contents_and_no_scrolling(browser: Browser, every_block: Path) -> None:
    with visiting(browser, every_block, width=720) as visit:
        visit.page.emulate_media(media="print", color_scheme="dark")
        assert not visit.page.locator("nav").is_visible()
        assert visit.page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(29, 30, 32)"
        assert visit.page.evaluate(
            "Math.max(...[...document.images].map(image => image.getBoundingClientRect().right))"
        ) <= 720  # fmt: skip


BROKEN = {
    "foreign_requests": '<link rel="stylesheet" href="http://127.0.0.1:9/style.css">',
    "complaints": "<script>throw new Error('broken')</script>",
    "broken_images": '<img src="data:image/png;base64,AAAA" alt="nothing">',
    "dead_links": '<a href="#nowhere">Go</a>',
    "overflowing": '<div style="width: 5000px">wide</div>',
    "faint_text": '<p style="color: #999; background: #fff">faint</p>',
    "structural_faults": '<h1>A second heading</h1><img src="data:," alt="">',
    "blank_views": "<style>body { visibility: hidden }</style>",
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_checks_see_a_broken_page(browser: Browser, tmp_path: Path, name: str) -> None:
    page = tmp_path / "broken.html"
    page.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title><nav>Contents</nav>'
        f"<main><h1>Headline</h1><p>{'All is well. ' * 99}</p>{BROKEN[name]}</main></html>",
        encoding="utf-8",
    )
    with visiting(browser, page) as visit:
        assert getattr(page_checks, name)(visit)


def test_every_check_is_proved() -> None:
    assert set(BROKEN) == {check.__name__ for check in CHECKS}


def test_the_checks_pass_a_good_page(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "good.html"
    page.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title><nav>Contents</nav>'
        f"<main><h1>Headline</h1><p>{'All is well. ' * 99}</p>"
        '<div style="overflow-x: auto"><div style="width: 5000px">wide, but it scrolls</div></div></main></html>',
        encoding="utf-8",
    )
    with visiting(browser, page) as visit:
        assert [fault for check in CHECKS for fault in check(visit)] == []
