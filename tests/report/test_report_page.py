"""The report in headless Chromium: it draws, sorts and overlays, by pointer, keys and ear."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from tests.report_runs import make, one_image, save_ladders, shared
from tp_grpo import report
from tp_grpo.report import reference
from tp_grpo.report.data import read

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no chromium or chromedriver (Debian: apt-get install chromium chromium-driver)",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    # In containers there is no sandbox for root, and little shared memory.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one of long ladders, that differ in their credit; against a band of three seeds."""
    folder = tmp_path_factory.mktemp("report")
    seeds = [read(make(folder / f"seed-{seed}", seed=seed, lift=0.1 * seed)) for seed in (1, 2, 3)]
    runs = [make(folder / "first"), make(folder / "second", credit="terminal", lift=0.2)]
    save_ladders(runs[1], 4, long_ladders())
    against = {"name": "mine"} | reference.make({"TP-GRPO": seeds})
    report.write(runs, folder / "report.html", against=against)
    return folder / "report.html"


def long_ladders(K: int = 9) -> dict[str, torch.Tensor]:
    tensors = {name: torch.zeros(3, K) for name in ("increment", "reward", "advantage")}
    tensors |= {"ladder": torch.rand(3, K + 1), "images": torch.zeros(3, K + 1, 8, 8, 3).byte()}
    return tensors | {"turning": torch.ones(3, K).bool(), "group_id": torch.tensor([7, 7, 7])}


@pytest.fixture
def opened(browser: webdriver.Chrome, page: Path) -> webdriver.Chrome:
    browser.get_log("browser")
    emulate(browser, 1280, "light")
    browser.get(page.as_uri())
    return browser


def emulate(browser: webdriver.Chrome, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def one(where: Any, selector: str) -> WebElement:
    element: WebElement = where.find_element(By.CSS_SELECTOR, selector)
    return element


def every(where: Any, selector: str) -> list[WebElement]:
    elements: list[WebElement] = where.find_elements(By.CSS_SELECTOR, selector)
    return elements


def chart(browser: webdriver.Chrome, title: str) -> WebElement:
    return next(
        figure for figure in every(browser, ".chart") if one(figure, "figcaption").text == title
    )


def alternative(figure: WebElement) -> str:
    return str(one(figure, "svg[role=img]").get_attribute("aria-label"))


def test_it_is_drawn_without_a_word_on_the_console_or_the_network(opened: webdriver.Chrome) -> None:
    assert opened.get_log("browser") == []
    fetched = opened.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert [name for name in fetched if not name.startswith("data:")] == []
    figures = every(opened, ".chart")
    assert len(figures) == 9
    assert all(every(figure, "path.line") for figure in figures)
    drawn = "return [...document.images].map((image) => image.complete && image.naturalWidth > 0)"
    assert len(every(opened, "img")) > 20
    assert all(opened.execute_script(drawn))


def test_curves_tell_what_they_show(opened: webdriver.Chrome) -> None:
    text = alternative(chart(opened, "total"))
    assert "first from 0.25 to 0.5 at 8 updates; second from 0.25 to 0.7 at 8 updates" in text
    assert "reference TP-GRPO ends between 0.6 and 0.8" in text


def test_runs_are_laid_over_each_other_along_any_axis_and_hidden(opened: webdriver.Chrome) -> None:
    figure = chart(opened, "total")
    assert len(every(figure, "[data-run]")) == 2
    assert len(every(figure, "[data-band]")) == 1
    one(opened, "[name=axis][value=seconds]").click()
    assert "at 40 training seconds" in alternative(figure)
    assert (
        one(opened, "#status").get_property("textContent")
        == "Curves of 2 of 2 runs along training seconds"
    )
    one(opened, "[name=run][value='0']").click()
    one(opened, "[name=bands]").click()
    assert len(every(figure, "[data-run]")) == 1
    assert not every(figure, "[data-band]")
    assert alternative(figure) == "total: second from 0.25 to 0.7 at 40 training seconds"


def test_values_are_read_by_arrow_keys_and_in_a_table(opened: webdriver.Chrome) -> None:
    figure = chart(opened, "reward")
    drawing = one(figure, "svg")
    drawing.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert one(figure, "output").text == "4 updates: first 0.6 ± 0.05, second 0.8 ± 0.05"
    one(figure, "summary").click()
    rows = [row.text for row in every(figure, "tbody tr")]
    assert len(rows) == 8
    assert rows[1] == "first 4 0.6 0.05"


def test_the_table_is_there_as_soon_as_it_is_asked_for(opened: webdriver.Chrome) -> None:
    rows = "arguments[0].parentElement.querySelectorAll('tbody tr')"
    at_once = f"arguments[0].click(); return {rows}.length"
    summary = one(chart(opened, "reward"), "summary")
    assert [opened.execute_script(at_once, summary) for _ in range(3)] == [8] * 3


def test_trajectories_are_sorted_by_reward_and_by_turning_points(opened: webdriver.Chrome) -> None:
    section = one(opened, "#run-0")
    shown = next(group for group in every(section, ".group") if group.is_displayed())

    def order() -> list[str]:
        return [str(row.get_attribute("data-member")) for row in every(shown, ".strip")]

    assert order() == ["0", "1", "2"]
    by = Select(one(section, ".sort"))
    by.select_by_value("turns")
    assert order() == ["2", "0", "1"]  # 2, 1 and no turning points
    by.select_by_value("reward")
    assert order() == ["0", "2", "1"]  # 1, 0.625 and 0.5
    by.select_by_value("member")
    assert order() == ["0", "1", "2"]


def test_one_epoch_is_shown_at_a_time(opened: webdriver.Chrome) -> None:
    section = one(opened, "#run-0")
    epoch = Select(one(section, ".epoch"))
    assert [option.text for option in epoch.options] == ["4", "3", "2", "1"]
    epoch.select_by_visible_text("2")
    shown = [
        group.get_attribute("data-epoch")
        for group in every(section, ".group")
        if group.is_displayed()
    ]
    assert shown == ["2"]


def test_steps_are_walked_by_keys_and_say_what_they_earned(opened: webdriver.Chrome) -> None:
    shown = next(group for group in every(opened, ".group") if group.is_displayed())
    assert len([step for step in every(shown, ".step") if step.get_property("tabIndex") == 0]) == 1

    def tip() -> str:
        return one(opened.switch_to.active_element, ".tip").text

    def press(key: str) -> None:
        opened.switch_to.active_element.send_keys(key)

    opened.execute_script("arguments[0].focus()", one(shown, ".step"))
    assert tip() == "Step 2: increment +0.25, long-term reward +1.00, credit +0.25, advantage +1.00"
    press(Keys.ARROW_RIGHT)
    assert tip().startswith("Step 3, turning point for the better: increment +0.75")
    press(Keys.ARROW_DOWN)
    press(Keys.ARROW_DOWN)
    press(Keys.HOME)
    assert tip().startswith(
        "Step 2, turning point for the worse: increment −0.25, long-term reward −0.12"
    )
    press(Keys.ESCAPE)
    assert tip() == ""  # hidden


def test_everything_seen_has_a_name(opened: webdriver.Chrome) -> None:
    nodes = opened.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = ("image", "img", "radio", "checkbox", "combobox", "button", "link", "region")
    seen = [node for node in nodes if not node["ignored"] and node["role"]["value"] in named]
    assert {"image", "radio", "checkbox", "combobox", "region"} <= {
        node["role"]["value"] for node in seen
    }
    assert [node for node in seen if not node.get("name", {}).get("value")] == []
    levels = [
        int(heading.tag_name[1])
        for heading in every(opened, "h1, h2, h3, h4")
        if heading.is_displayed()
    ]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out(opened: webdriver.Chrome, scheme: str) -> None:
    emulate(opened, 1280, scheme)
    page, panel = (colour(opened, f"--{name}") for name in ("page", "panel"))
    assert (luminance(page) < 0.05) == (scheme == "dark")
    for back in (page, panel):
        assert all(contrast(colour(opened, f"--{name}"), back) >= 4.5 for name in ("ink", "soft"))
        # WCAG asks for 3 where it is not text.
        assert all(
            contrast(colour(opened, f"--{name}"), back) >= 3 for name in ("good", "bad", "focus")
        )
        assert all(contrast(colour(opened, f"--c{run}"), back) >= 3 for run in range(7))


@pytest.mark.parametrize("width", [360, 1280])
def test_fans_are_shown_an_epoch_at_a_time_and_scroll_by_themselves(
    browser: webdriver.Chrome, tmp_path: Path, width: int
) -> None:
    run = shared(tmp_path / "run")
    save_ladders(run, 2, one_image())
    report.write(run, run / "report.html")
    browser.get_log("browser")
    emulate(browser, width, "light")
    browser.get((run / "report.html").as_uri())
    assert browser.get_log("browser") == []
    Select(one(browser, ".epoch")).select_by_visible_text("1")
    shown = [group for group in every(browser, ".group") if group.is_displayed()]
    assert [group.get_attribute("data-epoch") for group in shown] == ["1", "1"]
    assert one(browser, "#status").get_property("textContent") == "Images of epoch 1"
    dots = [dot.rect["x"] + dot.rect["width"] / 2 for dot in every(shown[0], ".fan .dot")[1:]]
    images = [image.rect["x"] + image.rect["width"] / 2 for image in every(shown[0], ".fan img")]
    assert dots == pytest.approx(images, abs=2), "a candidate's mark is above its image"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_no_screen_is_too_narrow(opened: webdriver.Chrome, width: int) -> None:
    emulate(opened, width, "light")
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width


def colour(browser: webdriver.Chrome, name: str) -> list[float]:
    """Red, green and blue in [0, 1] of a custom property of the page."""
    script = """
    const probe = document.createElement("i");
    probe.style.color = `var(${arguments[0]})`;
    document.body.append(probe);
    const color = getComputedStyle(probe).color;
    probe.remove();
    return color;"""
    rgb = str(browser.execute_script(script, name))
    return [int(part) / 255 for part in rgb[rgb.index("(") + 1 : -1].split(",")[:3]]


def luminance(rgb: list[float]) -> float:
    """WCAG 2.2, relative luminance."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
