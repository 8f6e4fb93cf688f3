"""The page as a person uses it, in a browser: from a file, and from a server."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from models_of_pages import GIVEN, Server, build
from PIL import Image

from glocal.explain import attention_weights
from glocal.page import STATIC, write_page


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Callable[[str], Path]:
    """Return the page that a model writes of its input."""
    folder = tmp_path_factory.mktemp("pages")
    return cache(lambda name: write_page(build(name), GIVEN[name], folder / f"{name}.html"))


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Return the address of a server of the models in `TASK`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(STATIC))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")  # while it is open, an event loop runs in this thread, and no other test can start one
def browser():
    """Return a Chromium; tests are skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if chromium is None:
        pytest.skip("no chromium; install it, or name it in CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    """Return a function that opens an address in a window; no error may follow."""
    problems, contexts = [], []

    def show(address: str, width: int = 1280, scheme: str = "light", touch: bool = False):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce", has_touch=touch
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: note(message, problems))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: check_address(request.url, address, problems))
        page.goto(address)
        page.wait_for_selector("#header h1")
        return page

    yield show
    for context in contexts:
        context.close()
    assert problems == []


def note(message, problems: list[str]) -> None:
    """Note an error; that a server refused something, the browser reports as one too."""
    if message.type == "error" and "status of 40" not in message.text:
        problems.append(message.text)


def check_address(url: str, address: str, problems: list[str]) -> None:
    """Note an address that is not the page's own: a file fetches nothing, and a served page from its server alone."""
    own = address if address.startswith("file:") else address.rstrip("/")
    if not url.startswith((own, "data:", "blob:")):
        problems.append(f"fetched {url[:80]}")


AXE = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}}


def faults(page) -> list[str]:
    """Return what axe-core finds that is serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page, options=AXE).response["violations"]
    return [
        f"{each['id']}: {node['html'][:120]}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def address(path: Path) -> str:
    return path.resolve().as_uri()


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("vit", "dark"), ("classify", "light")]
    + [pytest.param(name, scheme, marks=pytest.mark.slow) for name in GIVEN for scheme in ("light", "dark")],
)
def test_it_opens_without_faults_and_fits_a_phone(name, scheme, tab, written):
    page = tab(address(written(name)), width=390, scheme=scheme, touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert faults(page) == []


def test_an_image_is_looked_at(tab, written):
    page = tab(address(written("vit")))
    assert page.locator("#attention .bars li").count() == 5
    said = page.locator(".picture .said")
    from_class = said.inner_text()
    assert from_class.startswith("Class token")
    box = page.locator(".patches").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    assert said.inner_text().startswith("row 1, column 1")
    page.mouse.move(0, 0)
    assert said.inner_text() == from_class
    page.locator(".patches").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert said.inner_text().startswith("row 2, column 2")
    page.locator(".thumb").nth(1).click()
    assert page.locator(".thumb").nth(1).get_attribute("aria-pressed") == "true"
    assert page.locator(".controls").first.get_by_role("slider", name="Layer").get_attribute("aria-valuetext") == "1"


def test_the_blocks_of_a_glit_open_its_heads(tab, written):
    page = tab(address(written("glit")))
    blocks = [block.global_heads for block in build("glit").model.config.blocks]
    assert page.locator(".block").count() == len(blocks)
    assert page.locator(".head.global").count() == sum(blocks)
    page.locator(".head.local").first.click()
    assert "convolution" in page.locator("#attention .controls .note").inner_text()
    assert "convolution" in page.locator("#steps").inner_text()
    page.locator(".head.global").first.click()
    assert page.locator("#steps table").count() == 1


def test_a_head_of_a_text_is_opened_and_followed(tab, written):
    page = tab(address(written("classify")))
    assert page.locator("#result .bars li").first.inner_text().split()[0] in ("good", "bad")
    tokens = page.locator("#attention .token")
    assert tokens.all_inner_texts() == ["[CLS]", "the", "cat", "sat", "on", "the", "mat", "[SEP]"]
    tokens.nth(2).hover()
    assert page.locator("#attention .said").first.inner_text().startswith("cat attends to")
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert tokens.nth(1).get_attribute("aria-pressed") == "true"
    page.locator(".thumb").nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    sliders = page.locator("#attention .controls").get_by_role("slider")
    assert [each.get_attribute("aria-valuetext") for each in sliders.all()] == ["0", "1"]
    page.locator(".cells").hover(position={"x": 3, "y": 3})
    assert "[CLS] → [CLS]" in page.locator(".matrix figcaption").inner_text()


def test_the_steps_show_the_model_s_own_numbers(tab, written):
    page = tab(address(written("classify")))
    page.locator("#attention .token").nth(2).click()
    page.get_by_role("slider", name="Layer").last.fill("0")
    model = build("classify").model
    ids = build("classify").tokenizer.encode([GIVEN["classify"]])[0]
    with torch.no_grad():
        weights = attention_weights(model, torch.tensor([ids]))["blocks"][0, 0, 0, 2]
    shares = [cell.inner_text() for cell in page.locator("#steps tbody td:nth-child(4)").all()]
    assert [float(share.split()[0]) for share in shares] == pytest.approx((100 * weights).tolist(), abs=0.51)
    page.locator("#steps tbody button").nth(3).click()
    assert "“cat” to “sat”" in page.locator("#steps").inner_text()
    assert "q·k / √8" in page.locator("#steps pre").inner_text()


def test_entities_and_answers_are_marked(tab, written):
    page = tab(address(written("tag")))
    assert page.locator("mark").count() == len(build("tag").predict([GIVEN["tag"]])[0])
    page = tab(address(written("answer")))
    assert page.locator(".question").inner_text() == GIVEN["answer"][0]
    (spans,) = build("answer").predict([GIVEN["answer"]], top=3)
    assert page.locator("mark").inner_text().startswith(spans[0].text)
    page.locator(".bars button").nth(1).click()
    assert page.locator("mark").inner_text().startswith(spans[1].text)


def test_a_masked_word_is_filled(tab, written):
    page = tab(address(written("mask")))
    page.get_by_role("button", name="cat", exact=True).first.click()
    expected = page.locator("#result .bars button")
    assert expected.count() == 5
    word = expected.nth(1).locator(".label").inner_text()
    expected.nth(1).click()
    assert page.locator(".word").nth(2).inner_text() == word


def test_a_runner_up_goes_on(tab, written):
    page = tab(address(written("write")))
    pieces = page.locator(".piece")
    before = pieces.all_inner_texts()
    pieces.nth(3).click()
    options = page.locator(".options button")
    assert options.first.get_attribute("aria-pressed") == "true"
    options.nth(1).click()
    after = pieces.all_inner_texts()
    assert after[:3] == before[:3]
    assert options.nth(1).get_attribute("aria-pressed") == "true"
    assert len(after) > 4


def test_a_translation_links_to_its_source(tab, written):
    page = tab(address(written("translate")))
    assert page.locator(".hypotheses tbody tr").count() == 4
    assert page.locator(".beam-tree .rank").count() == 4
    assert page.locator(".links path").count() > 0
    page.get_by_role("button", name="Source", exact=True).click()
    assert page.locator("#attention .token").first.inner_text() == "the"
    assert page.locator(".arcs path").count() > 0


def test_language_and_theme_are_remembered(tab, written):
    page = tab(address(written("classify")))
    page.get_by_role("button", name="Tiếng Việt").click()
    assert page.locator("h1").inner_text() == "Phân loại văn bản"
    page.get_by_role("button", name="Tối").click()
    page.reload()
    assert page.locator("h1").inner_text() == "Phân loại văn bản"
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("document.documentElement.lang") == "vi"


def test_a_server_is_asked_for_any_text(tab, server):
    page = tab(server)
    page.get_by_label("Text", exact=True).fill("it sat on the cat")
    page.get_by_role("button", name="Explain").click()
    page.wait_for_selector("#steps table")
    assert page.locator("#attention .token").nth(1).inner_text() == "it"
    page.get_by_label("Text", exact=True).fill("cat " * 99)
    page.get_by_role("button", name="Explain").click()
    assert "more than the 32 tokens" in page.get_by_role("alert").inner_text()


def test_a_server_takes_an_image(tab, server, tmp_path):
    page = tab(server)
    page.get_by_role("combobox").select_option("vit")
    Image.fromarray(GIVEN["vit"]).save(tmp_path / "photo.png")
    page.locator("input[type=file]").set_input_files(tmp_path / "photo.png")
    page.wait_for_selector(".patches")
    assert page.locator("#attention .bars li").count() == 5
    assert faults(page) == []


def test_a_server_goes_on_writing_and_fills_masks(tab, server):
    page = tab(server)
    page.get_by_role("combobox").select_option("write")
    page.get_by_label("Text", exact=True).fill("the dog")
    page.get_by_role("button", name="Explain").click()
    page.wait_for_selector(".piece")
    page.locator(".piece").nth(2).click()
    page.locator(".options button").nth(3).click()
    page.wait_for_function("document.querySelectorAll('.piece').length > 4")
    page.get_by_role("combobox").select_option("mask")
    page.get_by_label("Text", exact=True).fill("the dog sat")
    page.get_by_role("button", name="Explain").click()
    page.locator(".word").nth(2).click()
    page.wait_for_selector(".masks .bars button")
    assert page.locator(".masks .bars button").count() >= 2
    assert page.locator(".word").nth(2).inner_text() == "[MASK]"


def test_what_was_left_out_is_said_in_a_file_and_fetched_from_a_server(tab, server, tmp_path, monkeypatch):
    for module in ("layers", "look"):  # limit for the weights of one layer of 3 × 8 × 8, and for no vectors
        monkeypatch.setattr(f"glocal.page.{module}.MAX_BYTES", 200)
    page = tab(address(write_page(build("classify"), GIVEN["classify"], tmp_path / "look.html")))
    assert "this file has layers 1" in page.locator("#attention .controls .note").inner_text()
    assert "left out" in page.locator("#steps .note").inner_text()
    page = tab(server)
    page.get_by_label("Text", exact=True).fill(GIVEN["classify"])
    page.get_by_role("button", name="Explain").click()
    page.wait_for_selector("#steps table")
    page.locator("#attention .controls").get_by_role("slider", name="Layer").fill("0")
    page.wait_for_function("document.querySelector('#attention .controls output').textContent === '0'")
    page.wait_for_selector("#steps table")
    assert page.locator("#attention .said").first.inner_text().startswith("[CLS] attends to")


def test_a_server_may_want_a_token(tab, server, monkeypatch):
    monkeypatch.setattr(Server, "token", "s3cret")
    page = tab(server)
    assert page.locator("textarea").count() == 0
    page.get_by_label("token").fill("wrong")
    page.get_by_role("button", name="Open").click()
    assert page.locator("textarea").count() == 0
    page.get_by_label("token").fill("s3cret")
    page.get_by_role("button", name="Open").click()
    page.wait_for_selector("textarea")
    assert page.get_by_role("button", name="Explain").is_visible()
