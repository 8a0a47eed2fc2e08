"""What the tests with a real browser share: `mixpo view` in a process of its own, and checks that run inside a page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def _chinese_fonts() -> bool:
    command = shutil.which("fc-list")
    return command is not None and bool(subprocess.run([command, ":lang=zh", "family"], capture_output=True, check=False).stdout.strip())


needs_chinese = pytest.mark.skipif(not _chinese_fonts(), reason="needs a Chinese font: apt-get install fonts-noto-cjk")


class Server:
    """`mixpo view` in a process of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        command = [sys.executable, "-m", "mixpo", "view", str(root), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found is not None, line
        self.home = found[0]

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(120)


def press(page: Page, key: str) -> None:
    """Press a key that opens another page, and wait until that page has loaded: before its script has run it hears no key."""
    with page.expect_navigation():
        page.keyboard.press(key)


def click(page: Page, target: Locator) -> None:
    """Click what opens another page, and wait until that page has loaded."""
    with page.expect_navigation():
        target.click()


def total(page: Page) -> int:
    """How many rows a list says it has."""
    words = page.locator(".pager .quiet").first.inner_text().replace(",", "").split()
    return int(words[words.index("of") + 1] if "of" in words else words[0])


CONTRAST = """() => {
  const light = c => {
    const v = c.map(x => (x /= 255) <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    return .2126*v[0] + .7152*v[1] + .0722*v[2];
  };
  const rgba = s => s.match(/[\\d.]+/g).map(Number);
  const back = e => {
    for (; e; e = e.parentElement) {
      const c = rgba(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const e of document.querySelectorAll('body *')) {
    if (e.closest('.off, .skip, dialog, option, title') || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(e), ink = e.closest('svg') ? style.fill : style.color;
    const a = light(rgba(ink).slice(0, 3)), b = light(back(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) bad.push(e.className + ' ' + e.textContent.trim().slice(0, 20) + ' ' + ratio.toFixed(2));
  }
  return bad;
}"""
"""WCAG contrast of every text with the first opaque background behind it: what is below 4.5."""


NAMELESS = """() => [...document.querySelectorAll('img, svg, input, select, button, a, [role=img]')].filter(e => {
  if (e.closest('[aria-hidden=true], [role=img] *, label, dialog:not([open])') || e.type === 'hidden') return false;
  if (e.tagName === 'IMG') return !e.hasAttribute('alt') || (e.alt === '' && !e.closest('a'));
  return !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length);
}).map(e => e.outerHTML.slice(0, 90))"""
"""Pictures and controls that a screen reader could not name. A picture inside a link that has words may have an empty alt."""

TOFU = """() => {
  const drawn = letter => {
    const canvas = document.createElement('canvas');
    canvas.width = canvas.height = 40;
    const pen = canvas.getContext('2d');
    pen.font = '30px ' + getComputedStyle(document.body).fontFamily;
    pen.fillText(letter, 2, 32);
    return pen.getImageData(0, 0, 40, 40).data.join();
  };
  return drawn('红') === drawn('块');
}"""
"""Whether Chinese letters are drawn as the same empty box."""


HEADINGS = """() => {
  const levels = [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].filter(e => e.offsetParent).map(e => Number(e.tagName[1]));
  const skips = levels.some((level, place) => level > (place ? levels[place - 1] : 0) + 1);
  return skips || levels.filter(level => level === 1).length !== 1 ? [levels.join(' ')] : [];
}"""
"""The levels of a page's headings, where one is left out or there is not one title."""


def problems(page: Page) -> list[str]:
    """What is wrong with how a page is shown: wider than the window, text too pale (WCAG AA), things without a name, headings left out."""
    checks = {"too pale": CONTRAST, "no name": NAMELESS, "headings": HEADINGS}
    found = [f"{what}: {text}" for what, check in checks.items() for text in page.evaluate(check)]
    size = page.viewport_size
    assert size is not None
    width = page.evaluate("document.documentElement.scrollWidth")
    return [*found, *([f"{width} pixels wide"] if width > size["width"] else [])]
