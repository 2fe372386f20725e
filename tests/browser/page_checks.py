"""What every page must hold in a browser. A check returns what is wrong, in words; nothing where all is well."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page

HEIGHT = 900


@dataclass(frozen=True)
class Visit:
    """An open page, every address that it asked for, and what its console complained of."""

    page: Page
    address: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@contextmanager
def visiting(
    browser: Browser, path: Path, *, width: int = 1440, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Visit]:
    """Open a file as by double click, in a window of a width."""
    with browser.new_context(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme) as context:
        visit = Visit(context.new_page(), path.as_uri())
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.on("console", lambda message: visit.complaints.append(f"{message.type}: {message.text}"))
        visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        visit.page.goto(visit.address)
        yield visit


def foreign_requests(visit: Visit) -> list[str]:
    return [url for url in visit.requests if url != visit.address and not url.startswith("data:")]


def complaints(visit: Visit) -> list[str]:
    return visit.complaints


def broken_images(visit: Visit) -> list[str]:
    return visit.page.evaluate(
        """[...document.images].filter(image => !image.complete || !image.naturalWidth)
        .map(image => image.outerHTML.slice(0, 200))"""
    )


def dead_links(visit: Visit) -> list[str]:
    return visit.page.evaluate(
        """[...document.querySelectorAll('a[href^="#"]')].map(link => link.getAttribute("href"))
        .filter(target => !document.getElementById(decodeURIComponent(target.slice(1))))"""
    )


def overflowing(visit: Visit) -> list[str]:
    """Elements that stick out of the window, unless something around them scrolls by itself."""
    return visit.page.evaluate(
        """() => {
            const width = document.documentElement.clientWidth;
            const scrolls = element => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
            const contained = element => {
                const around = element.parentElement;
                return around !== document.body && (scrolls(around) || contained(around));
            };
            const wrong = [...document.body.querySelectorAll("*")].filter(element => {
                const box = element.getBoundingClientRect();
                return box.width && (box.right > width + 1 || box.left < -1) && !contained(element);
            }).map(element => `${element.tagName} ends at ${element.getBoundingClientRect().right} of ${width}`);
            const page = document.documentElement.scrollWidth;
            return page > window.innerWidth ? [`the page scrolls sideways, to ${page}`, ...wrong] : wrong;
        }"""
    )


def faint_text(visit: Visit) -> list[str]:
    """Text whose contrast with its ground is below 4.5, by the formula of WCAG 2."""
    return visit.page.evaluate(
        """() => {
            const parts = colour => colour.match(/[\\d.]+/g).map(Number);
            const luminance = colour => {
                const [red, green, blue] = parts(colour).slice(0, 3).map(value => value / 255)
                    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
                return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
            };
            const ground = element => {
                for (let around = element; around; around = around.parentElement) {
                    const colour = getComputedStyle(around).backgroundColor;
                    if ((parts(colour)[3] ?? 1) > 0) return colour;
                }
                return "rgb(255, 255, 255)";
            };
            const holdsText = element => [...element.childNodes].some(
                node => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
            return [...document.body.querySelectorAll("*")].filter(holdsText).flatMap(element => {
                const pair = [getComputedStyle(element).color, ground(element)];
                const [dark, light] = pair.map(luminance).sort((first, second) => first - second);
                const contrast = (light + 0.05) / (dark + 0.05);
                return contrast < 4.5 ? [`${element.tagName} ${pair.join(" on ")}: ${contrast.toFixed(2)}`] : [];
            });
        }"""
    )


def structural_faults(visit: Visit) -> list[str]:
    """What a screen reader stumbles over."""
    return visit.page.evaluate(
        """() => {
            const all = selector => [...document.querySelectorAll(selector)];
            const faults = [];
            if (all("h1").length !== 1) faults.push(`${all("h1").length} first-level headings`);
            if (all("main").length !== 1 || all("nav").length !== 1) faults.push("no main or no nav");
            if (!document.documentElement.lang) faults.push("no language");
            if (!document.title) faults.push("no title");
            all("img").filter(image => !image.alt.trim()).forEach(() => faults.push("an image without words"));
            all("th").filter(cell => !cell.scope).forEach(cell => faults.push(`no scope: ${cell.textContent}`));
            const ids = all("[id]").map(element => element.id);
            ids.filter((id, place) => ids.indexOf(id) !== place).forEach(id => faults.push(`twice: ${id}`));
            const named = all("[aria-labelledby]").map(element => element.getAttribute("aria-labelledby"));
            named.filter(id => !ids.includes(id)).forEach(id => faults.push(`no label: ${id}`));
            all("h1, h2, h3, h4, h5, h6").map(heading => +heading.tagName[1]).reduce((before, level) => {
                if (level > before + 1) faults.push(`heading of level ${level} after ${before}`);
                return level;
            }, 0);
            return faults;
        }"""
    )


def blank_views(visit: Visit) -> list[str]:
    """The first window, from top to bottom, in which there is nothing to see."""
    for place in (0.0, 0.5, 1.0):
        visit.page.evaluate("place => scrollTo(0, place * document.documentElement.scrollHeight)", place)
        deadline = time.monotonic() + 60  # a large picture appears a moment after its place
        while (spread := _spread_of_grey(visit)) < 5:
            if time.monotonic() > deadline:
                return [f"window at {place:.0%} of the page: grey values spread by {spread:.2f} of 255"]
    return []


def _spread_of_grey(visit: Visit) -> float:
    with Image.open(io.BytesIO(visit.page.screenshot())) as view:
        return float(np.asarray(view.convert("L"), dtype=float).std())


CHECKS = (
    foreign_requests,
    complaints,
    broken_images,
    dead_links,
    overflowing,
    faint_text,
    structural_faults,
    blank_views,
)
