"""The dashboard in a real browser."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page, expect

from gputel.api.routes import ROUTES
from serving import Site

pytestmark = pytest.mark.e2e

DRAWN = """() => {
  const canvas = document.querySelector("#charts canvas");
  if (!canvas || !canvas.width) return false;
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.some((value) => value !== 0);
}"""


def test_lists_every_gpu(site: Site, page: Page) -> None:
    page.goto(site.url)
    expect(page.locator("#rows tr")).to_have_count(site.gpus)
    expect(page.locator("#heat .cell")).to_have_count(site.gpus)
    expect(page.locator('[data-total="nodes"]')).to_have_text(str(site.nodes))
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.locator("#age")).to_contain_text("last message")


def test_values_move(site: Site, page: Page) -> None:
    page.goto(site.url)
    cell = page.locator('#rows tr [data-metric="power_watts"]').first
    expect(cell).to_contain_text("W")
    before = cell.inner_text()
    expect(cell).not_to_have_text(before)


def test_charts_are_drawn_and_grow(site: Site, page: Page) -> None:
    page.goto(site.url)
    page.locator("#rows tr").first.click()
    expect(page.locator("#charts .uplot")).to_have_count(5)
    page.wait_for_function(DRAWN)
    value = page.locator("#charts h3 b").nth(1)
    expect(value).to_contain_text("W")
    before = value.inner_text()
    expect(value).not_to_have_text(before)
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()


def test_works_with_the_keyboard(site: Site, page: Page) -> None:
    page.goto(site.url)
    expect(page.locator("#rows tr")).to_have_count(site.gpus)
    page.locator("#rows tr").nth(1).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#detail-title")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#rows tr").nth(1)).to_be_focused()


def test_a_hostile_name_is_text(site: Site, page: Page) -> None:
    page.goto(site.url)
    name = "<img src=x"
    expect(page.locator("#rows tr", has_text=name)).to_have_count(8)
    page.locator("#rows tr", has_text=name).first.click()
    expect(page.locator("#detail-title")).to_contain_text(name)
    expect(page.locator("main img")).to_have_count(0)
    expect(page).to_have_title("gputel")


def test_learns_what_the_stream_brings_before_the_database(late_site: Site, page: Page) -> None:
    page.goto(late_site.url)
    expect(page.locator("#rows tr", has_text="NVIDIA H100")).to_have_count(8, timeout=10_000)
    expect(page.locator("#rows tr td:nth-child(2)")).to_have_text(list("01234567"))


def test_no_gpus_yet(empty_site: Site, page: Page) -> None:
    page.goto(empty_site.url)
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#list")).to_be_hidden()


def test_stored_history_of_a_fleet(old_site: Site, page: Page) -> None:
    page.goto(old_site.url)
    expect(page.locator("#heat .cell.stale")).to_have_count(old_site.gpus)
    expect(page.locator("#connection")).to_have_text("connected, no new samples")
    first = page.locator("#rows tr").first
    expect(first.locator('[data-metric="power_watts"]')).to_contain_text("W")
    expect(first.locator("td").last).to_contain_text("20")
    first.click()
    page.wait_for_function(DRAWN)


def test_narrow_screen_does_not_scroll_sideways(site: Site, page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(site.url)
    expect(page.locator("#rows tr")).to_have_count(site.gpus)
    page.locator("#rows tr").first.click()
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0


def test_the_api_is_documented(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/docs")
    expect(page.locator(".opblock")).to_have_count(len(ROUTES))
    page.locator(".opblock-summary").first.click()
    expect(page.locator(".opblock-body").first).to_be_visible()
    document = json.loads(page.request.get(f"{site.url}/openapi.json").text())
    assert document["openapi"] == "3.1.0"
