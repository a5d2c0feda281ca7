"""The report page in a browser: sorting, links, nothing wider than the window, no message of the console."""

import shutil

import pytest

from open_clip_triplet.evaluation.report.render import render
from report_fixtures import model


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    driver = shutil.which("chromedriver")
    if driver is None or not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("no chromium with chromedriver")
    options = webdriver.ChromeOptions()
    flags = (
        "headless=new no-sandbox disable-gpu disable-dev-shm-usage no-first-run disable-background-networking"
    )
    for flag in (*flags.split(), "window-size=1300,1000"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    page = tmp_path_factory.mktemp("page") / "report.html"
    results = [*model("clip", 0.55, 0.6), *model("triplet", 0.8, 0.5), *model("other", 0.6, 0.7)]
    page.write_text(render(results, "html", baseline="clip"), encoding="utf-8")
    found.get(page.as_uri())
    yield found
    found.quit()


def labels(browser, table: str) -> list[str]:
    """First cells of the measured rows of the table below a heading, as they stand."""
    script = """
      const table = document.getElementById(arguments[0]).nextElementSibling.querySelector("table");
      return [...table.querySelectorAll("tr.measured")].map((row) => row.cells[0].textContent)"""
    return browser.execute_script(script, table)


def test_a_click_sorts_within_its_section_and_a_third_restores(browser):
    name = "composition-beside-retention"
    heading = browser.find_element("css selector", f"#{name} + div th.sortable")
    before = labels(browser, name)
    assert before == ["clip", "triplet", "other"]
    seen = []
    for _ in range(3):
        heading.click()
        seen.append((heading.get_attribute("aria-sort"), labels(browser, name)))
    assert seen == [
        ("descending", ["triplet", "other", "clip"]),
        ("ascending", ["clip", "other", "triplet"]),
        ("none", before),
    ]
    script = "return document.querySelector(`#${arguments[0]} + div tbody`).rows[0].className"
    assert browser.execute_script(script, name) == "group"  # the section's heading stays above


def test_every_table_has_a_link_of_its_own(browser):
    links = browser.find_elements("css selector", "h3 a.anchor")
    targets = [link.get_attribute("href").partition("#")[2] for link in links]
    assert len(targets) == len(set(targets)) > 8 and "tables-4-and-7-sugarcrepe" in targets
    assert all(browser.find_element("id", target) for target in targets)


@pytest.mark.parametrize("width", [1300, 420])
def test_the_page_is_not_wider_than_the_window(browser, width):
    browser.set_window_size(width, 1000)
    script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(script) <= 0
    assert browser.get_log("browser") == []


def test_no_other_script_runs(browser):
    """The page's policy lets its own script run alone, should a name ever get past the escaping."""
    browser.execute_script(
        "const x = document.createElement('script'); x.textContent = 'window.stranger = 1'; document.body.append(x)"
    )
    assert browser.execute_script("return window.stranger") is None
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]
