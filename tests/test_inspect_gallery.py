"""The gallery in a real browser: clicked through, with captions that attack it."""

import csv
import shutil
import time
from pathlib import Path

import pytest

from conftest import paired_sample
from open_clip_triplet.inspect import cli
from open_clip_triplet.shards import ShardWriter

ATTACK = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & \u2028 end"
CATEGORIES = ["object", "attribute", "relation"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """130 samples: three pages. The last has a hostile caption, the one before no decodable image."""
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder / "00000.tar") as writer:
        for number in range(130):
            sample = paired_sample(number)
            sample["json"].update(category=CATEGORIES[number % 3], scores={"mean": number / 1000})
            if number == 128:
                sample["neg.jpg"] = b"not an image"
            if number == 129:
                sample["txt"] = sample["neg.txt"] = ATTACK
            writer.write(sample)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    driver = shutil.which("chromedriver")
    if driver is None or not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("no chromium with chromedriver")
    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run",
                 "disable-background-networking", "window-size=1300,1000"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.downloads = downloads
    yield found
    found.quit()


def open_page(browser, page: Path) -> None:
    browser.get(page.as_uri())
    browser.execute_script("localStorage.clear()")
    browser.get(page.as_uri())


def press(browser, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def texts(browser, selector: str) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector
    )


def choose(browser, field: str, value: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    Select(browser.find_element(By.ID, field)).select_by_value(value)


def current(browser) -> str:
    return browser.execute_script("return document.activeElement.getAttribute('aria-label')")


def waited(condition, seconds: float = 30.0):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module", params=["folder", "single-file"])
def page(request, shards, tmp_path_factory):
    file = tmp_path_factory.mktemp("gallery") / "a b#1.html"
    argv = ["gallery", str(shards), "--html", str(file), "--title", ATTACK]
    assert cli.main(argv + ["--single-file"] * (request.param == "single-file")) == 0
    return file


def test_captions_are_text_and_the_page_is_clean(browser, page):
    open_page(browser, page)
    assert browser.execute_script("return document.querySelector('h1').textContent") == ATTACK
    press(browser, "n", "n")
    assert texts(browser, "#cards article p")[-2:] == [ATTACK, ATTACK]
    assert "owned" not in browser.title.replace(ATTACK, "")
    assert texts(browser, ".frame.none") == ["This image cannot be decoded"]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    broken = "return [...document.images].filter((i) => i.complete && !i.naturalWidth).length"
    assert waited(lambda: browser.execute_script("return document.images[0].naturalWidth"))
    assert browser.execute_script(broken) == 0
    assert browser.execute_script("return [...document.images].every((i) => i.alt)")


def test_nothing_is_loaded_from_outside(browser, page):
    open_page(browser, page)
    browser.execute_script(
        "window.refused = [];"
        "document.addEventListener('securitypolicyviolation', (e) => refused.push(e.effectiveDirective));"
        "document.body.append(Object.assign(new Image(), { src: 'https://example.org/x.png' }));"
        "const s = document.createElement('script'); s.textContent = 'document.title = 1'; document.body.append(s);"
    )
    assert waited(lambda: len(browser.execute_script("return refused")) == 2)
    assert sorted(browser.execute_script("return refused")) == ["img-src", "script-src-elem"]
    browser.get_log("browser")


def test_search_filter_sort(browser, page):
    open_page(browser, page)
    assert texts(browser, "#count") == ["130 samples"] and len(texts(browser, "#cards article")) == 60
    press(browser, "/", "number 127")
    assert waited(lambda: texts(browser, "#count") == ["1 of 130"])
    changed = texts(browser, ".half > p mark")
    assert changed == ["yellow", "red"]  # positive 127 is yellow, its negative red
    press(browser, "\ue00c")
    browser.execute_script("document.getElementById('reset').click()")
    assert texts(browser, "#count") == ["130 samples"]
    choose(browser, "facet-category", "relation")
    assert texts(browser, "#count") == ["43 of 130"]
    choose(browser, "sort", "mean")
    assert texts(browser, "#cards .score b")[0] == "0.128"
    browser.execute_script("document.getElementById('direction').click()")
    assert texts(browser, "#cards .score b")[0] == "0.002"
    browser.execute_script("const m = document.querySelector('#most'); m.value = 0.05; m.oninput()")
    scores = [float(text) for text in texts(browser, "#cards .score b")]
    assert len(scores) == 17 and max(scores) <= 0.05 and scores == sorted(scores)
    push = "const l = document.querySelector('#least'); l.value = 0.1; l.dispatchEvent(new Event('input'))"
    browser.execute_script(push)
    assert texts(browser, "#range output") == ["0.100 – 0.100"]


def test_keyboard_marks_and_csv(browser, page):
    open_page(browser, page)
    press(browser, "j", "b", "g")
    assert current(browser) == "Sample 00000002"
    press(browser, "b", "u")  # taken back
    assert current(browser) == "Sample 00000002"
    press(browser, "k", "k", "k")
    assert current(browser) == "Sample 00000000"
    for _ in range(3):
        press(browser, "n")
    press(browser, "j", "b")
    choose(browser, "mark", "bad")
    assert texts(browser, "#count") == ["2 of 130"]
    browser.get(page.as_uri())  # marks are still there
    assert texts(browser, "#download") == ["Save marks (2 bad, 1 good)"]
    for old in browser.downloads.glob("*"):
        old.unlink()
    browser.execute_script("document.getElementById('download').click()")
    assert waited(lambda: [f for f in browser.downloads.glob("*.csv") if f.stat().st_size])
    rows = list(csv.DictReader(open(next(browser.downloads.glob("*.csv")))))
    assert rows == [
        {"key": f"{number:08d}", "mark": mark, "shard": "00000.tar"}
        for number, mark in ((0, "bad"), (1, "good"), (120, "bad"))
    ]


def test_stepping_crosses_pages_and_enlarging(browser, page):
    open_page(browser, page)
    browser.execute_script("document.querySelectorAll('#cards article')[59].focus()")
    press(browser, "j")
    assert current(browser) == "Sample 00000060"
    press(browser, "k")
    assert current(browser) == "Sample 00000059"
    press(browser, "\ue007")
    assert browser.execute_script("return document.getElementById('large').open")
    press(browser, "\ue00c")
    assert not browser.execute_script("return document.getElementById('large').open")
    assert current(browser) == "Sample 00000059"


def test_phone_has_no_sideways_scrolling(browser, page):
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        open_page(browser, page)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        browser.execute_script("document.getElementById('toggle').click()")
        assert browser.execute_script("return document.getElementById('panel').offsetHeight") > 0
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        buttons = "return [...document.querySelectorAll('.actions button')]"
        heights = browser.execute_script(f"{buttons}.map((button) => button.offsetHeight)")
        assert min(heights) >= 44
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_smaller_gallery_of_the_same_name_leaves_no_old_thumbnails(shards, tmp_path):
    page = tmp_path / "g.html"
    assert cli.main(["gallery", str(shards), "--html", str(page)]) == 0
    (tmp_path / "g_files" / "notes.txt").write_text("mine")
    assert cli.main(["gallery", str(shards), "--html", str(page), "--sample", "3"]) == 0
    assert len(list((tmp_path / "g_files").rglob("*.webp"))) in (5, 6)
    assert (tmp_path / "g_files" / "notes.txt").exists()
