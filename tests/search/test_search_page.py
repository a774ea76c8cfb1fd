"""The search page in a real browser: it shows what the API answers, in every state, and obeys the keyboard."""

from urllib.parse import quote

import pytest

from chromium import Chromium
from leaf.runtime.server import Settings
from leaf.search.server import create_search_app
from parity.javascript import browser
from searching import DOCUMENTS, Opened, WordEncoder, make_app, make_index, ranking, usual
from serving import ask, running_app

pytestmark = pytest.mark.skipif(browser() is None, reason="needs Chromium")

READY = "document.getElementById('about').textContent && lists.getAttribute('aria-busy') === 'false'"
QUERY = "how to read a file"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("chromium")) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    with make_index(tmp_path_factory.mktemp("index") / "index") as index:
        yield index


@pytest.fixture(scope="module")
def url(index):
    with running_app(*make_app(index)) as url:
        yield url


@pytest.fixture
def opened(chromium):
    """Opens pages, and says afterwards whether one of them logged an error."""
    chromium.events.clear()
    return chromium.open


def shown(page, column=0):
    """What a column of results says, from the document."""
    return page.value(
        f"""[...document.querySelectorAll('.hits')[{column}].children].map((hit) => ({{
            id: hit.dataset.id, rank: hit.querySelector('.rank').textContent, name: hit.querySelector('h3').textContent,
            score: hit.querySelector('.score').textContent, text: hit.querySelector('.text').textContent,
            marks: [...hit.querySelectorAll('.marks li')].map((each) => each.textContent),
        }}))"""
    )


def ids(page, column=0):
    return [hit["id"] for hit in shown(page, column)]


def focused(page):
    return page.value("document.activeElement.dataset.id || document.activeElement.id")


def best(model, query=QUERY):
    return [each for each, _ in ranking(usual().encoders[model], query)[:10]]


def test_the_page_shows_what_the_api_answers(opened, url):
    page = opened(f"{url}/?q={quote(QUERY)}")
    page.wait(f"{READY} && document.querySelector('.hit')")
    answer = ask(url, path="/v1/search", body={"query": QUERY})[2]
    for rank, (hit, found) in enumerate(zip(answer["hits"], shown(page), strict=True), start=1):
        assert found["id"] == hit["id"]
        assert found["rank"] == f"Rank {rank}"
        assert found["score"] == f"{hit['score']:.3f}"
        assert found["name"] == hit["title"] + hit["id"]
        assert found["text"] == hit["text"]
        assert found["marks"] == [
            f"{name} {str(value).lower() if isinstance(value, bool) else value}"
            for name, value in hit["metadata"].items() if value is not None
        ]  # fmt: skip
    assert page.value("document.title") == f"{QUERY} – search"
    assert page.value("document.querySelector('h1').textContent") == f"Search {len(DOCUMENTS)} documents"
    assert page.value("document.querySelector('#status').textContent") == "10 results"
    assert page.value("/encode [\\d.]+ m?s \\+ search [\\d.]+ m?s/.test(document.querySelector('.head').textContent)")
    assert page.value("document.querySelector('.marks a').href").startswith("https://docs.example/")


def test_comparing_shows_the_teachers_ranking_and_counts_what_both_found(opened, url):
    page = opened(f"{url}/?q={quote(QUERY)}&compare=1&model=tiny")
    page.wait("document.getElementById('overlap')")
    own, teacher = best("tiny"), best("teacher")
    assert (ids(page, 0), ids(page, 1)) == (own, teacher)
    shared = len(set(own) & set(teacher))
    assert 0 < shared < 10, "the test would see nothing in two equal or disjoint rankings"
    words = f"{shared} of 10 results of tiny are in the teacher’s top 10"
    assert page.value("document.getElementById('status').textContent") == words
    for column, (ranked, others, found, missed) in enumerate(
        [(own, teacher, "teacher", "the teacher’s"), (teacher, own, "tiny", "tiny’s")]
    ):
        for hit, each in zip(shown(page, column), ranked, strict=True):
            place = f"{found}: {others.index(each) + 1}" if each in others else f"not in {missed} top 10"
            assert hit["marks"][0] == place
    lefts = "[...document.querySelectorAll('section')].map((each) => each.getBoundingClientRect().left)"
    assert page.value(lefts)[0] < page.value(lefts)[1], "side by side"
    # The same document lights up in both, and the right arrow goes there.
    both = next(each for each in own if each in teacher)
    page.value(f"document.querySelector('[data-id=\"{both}\"]').focus()")
    assert page.value("[...document.querySelectorAll('.same')].map((each) => each.dataset.id)") == [both, both]
    page.press("ArrowRight")
    assert focused(page) == both
    assert page.value("document.querySelectorAll('.hits')[1].contains(document.activeElement)")


def test_the_address_says_what_is_asked_and_the_back_button_returns(opened, url):
    page = opened(url)
    page.wait(READY)
    assert focused(page) == "query"
    page.type(QUERY)
    page.press("Enter")
    page.wait(f"{READY} && document.querySelector('.hit')")
    assert page.value("location.search") == "?q=how+to+read+a+file"
    page.value("document.querySelector('input[value=small]').focus()")
    page.press("ArrowRight")  # a radio group's arrows
    page.wait(f"{READY} && document.querySelector('h2').textContent === 'tiny' && document.querySelector('.hit')")
    assert ids(page) == best("tiny")
    page.value("document.getElementById('compare').click()")
    page.wait("document.getElementById('overlap')")
    assert page.value("location.search") == "?q=how+to+read+a+file&model=tiny&compare=1"
    page.value("history.go(-2)")
    page.wait(
        f"{READY} && document.querySelector('h2').textContent === 'small' && document.querySelectorAll('.hit')[9]"
    )
    assert ids(page) == best("small")
    assert page.value("document.querySelector('input:checked').value") == "small"
    assert page.value("document.getElementById('compare').checked") is False


def test_typing_searches_and_the_keyboard_reaches_everything(opened, url):
    page = opened(url)
    page.wait(READY)
    page.type("read")
    page.wait(f"{READY} && document.querySelector('.hit')")  # nobody pressed Enter
    expected = best("small", "read")
    assert ids(page) == expected
    assert page.value("history.length") == 2, "what is typed fills no history: about:blank, and the page"
    for key, place in (("ArrowDown", 0), ("j", 1), ("ArrowDown", 2), ("k", 1), ("ArrowUp", 0)):
        page.press(key)
        assert focused(page) == expected[place]
    page.press("k")
    assert focused(page) == "query"
    page.press("j")
    assert page.value("document.getElementById('query').value") == "readj", "in the box it is a letter"
    page.value("document.activeElement.blur()")
    page.press("/")
    assert focused(page) == "query"
    page.press("Escape")
    page.wait("document.querySelector('.empty kbd')")
    left = page.value("[query.value, location.search, document.querySelectorAll('.hit').length]")
    assert left == ["", "", 0]


def test_long_texts_are_cut_until_enter_and_a_button_says_so_where_they_are(opened, url):
    page = opened(f"{url}/?q=and+so+on&where=topic=='json'", width=360, height=800)
    page.wait(f"{READY} && document.querySelector('.hit')")
    page.press("ArrowDown")
    text = "document.activeElement.querySelector('.text')"
    assert page.value(f"{text}.scrollHeight > 3 * {text}.clientHeight")
    hidden = page.value("[...document.querySelectorAll('.more')].map((each) => each.hidden)")
    assert hidden == [len(hit["text"]) < 100 for hit in shown(page)] == [False] + 5 * [True]
    page.press("Enter")
    assert page.value(f"{text}.scrollHeight === {text}.clientHeight")
    assert page.value("document.activeElement.querySelector('.more').getAttribute('aria-expanded')") == "true"
    assert page.value("document.documentElement.scrollWidth") == 360, "nothing is wider than a phone"


def test_documents_are_text_and_never_markup(opened, url, chromium):
    page = opened(f"{url}/?q=json&where={quote('id == ' + repr('evil'))}&compare=1")
    page.wait(f"{READY} && document.getElementById('overlap')")
    evil = DOCUMENTS[-1]
    for hit in (shown(page)[0], shown(page, 1)[0]):
        assert (hit["id"], hit["text"], hit["name"]) == ("evil", evil.text, evil.title + "evil")
    assert page.value("window.broken === undefined")
    assert page.value("document.querySelectorAll('main :is(script, img, b:not(.marks b))').length") == 0
    assert page.value("[...document.querySelectorAll('main a')].length") == 0, "javascript: is no link"
    assert not errors(chromium)


def errors(chromium):
    """What went wrong in pages: exceptions, refused styles and scripts, failed requests."""
    kinds = ("Log.entryAdded", "Runtime.exceptionThrown")
    return [event["params"] for event in chromium.events if event["method"] in kinds]


def test_a_condition_that_is_none_is_answered_with_the_servers_line(opened, url):
    page = opened(f"{url}/?q=json&where={quote('tpic == 1')}")
    page.wait(f"{READY} && document.querySelector('.failed')")
    message = ask(url, path="/v1/search", body={"query": "json", "where": "tpic == 1"})[2]["error"]["message"]
    assert page.value("document.querySelector('[role=alert]').textContent") == message
    assert page.value("document.getElementById('where').getAttribute('aria-invalid')") == "true"
    page.value("document.getElementById('where').value = 'number > 1000'; document.getElementById('where').focus()")
    page.press("Enter")
    page.wait(f"{READY} && document.querySelector('.failed') === null")
    assert page.value("document.querySelector('[role=alert]').textContent") == "No document meets the filter."
    assert page.value("document.getElementById('where').hasAttribute('aria-invalid')") is False
    assert page.value("document.getElementById('columns').textContent").startswith(
        "Columns: topic (text), number (number)"
    )


def test_a_teacher_that_cannot_be_opened_leaves_the_students_results(opened, index):
    broken = Opened(small=WordEncoder("small", 0.2), teacher=ModuleNotFoundError("No module named 'torch'"))
    with running_app(*make_app(index, broken)) as url:
        page = opened(f"{url}/?q={quote(QUERY)}&compare=1")
        page.wait(f"{READY} && document.querySelector('.failed')")
        assert ids(page) == best("small")
        reason = "teacher cannot be opened: No module named 'torch'"
        assert page.value("document.querySelector('.failed').textContent") == reason
        assert page.value("document.getElementById('note').textContent") == reason
        assert page.value("document.getElementById('segments').lastChild.textContent") == "teacherunavailable"
        assert page.value("document.getElementById('overlap')") is None


def test_an_index_with_one_encoder_offers_no_choice(opened, index):
    settings = Settings(port=0, api_key=None)
    with running_app(
        create_search_app(index, Opened(small=usual().encoders["small"]).openers(), settings), settings
    ) as url:
        page = opened(f"{url}/?q=json&compare=1")
        page.wait(f"{READY} && document.querySelector('.hit')")
        assert page.value("[models.hidden, document.getElementById('compare-label').hidden]") == [True, True]
        assert page.value("document.querySelectorAll('section').length") == 1


def test_a_server_with_a_key_is_asked_with_it(opened, index):
    app, settings = make_app(index, api_key="sésame")
    with running_app(app, settings) as url:
        page = opened(f"{url}/?q={quote(QUERY)}")
        for key, outcome in (
            ("wrong", "document.getElementById('status').textContent"),
            ("sésame", "document.querySelector('.hit')"),
        ):
            page.wait("document.activeElement.id === 'key'")
            page.type(key)
            page.press("Enter")
            page.wait(outcome)
        assert ids(page) == best("small")
        assert page.value("document.getElementById('key-form').hidden")
        assert page.value("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]


def luminance(colour):
    channels = [value / 255 / 12.92 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour]
    return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]


#: Every text of the page, with what it stands on; the ratio between their luminances is WCAG's contrast.
TEXTS = """[...document.querySelectorAll('body *')].filter((node) => node.checkVisibility() &&
    [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())).map((node) => {
        let under = node;
        while (getComputedStyle(under).backgroundColor === 'rgba(0, 0, 0, 0)') under = under.parentElement;
        const numbers = (colour) => colour.match(/\\d+/g).slice(0, 3).map(Number);
        return [node.textContent.slice(0, 40), numbers(getComputedStyle(node).color),
                numbers(getComputedStyle(under).backgroundColor)];
    })"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(opened, url, scheme):
    page = opened(f"{url}/?q={quote(QUERY)}&compare=1&model=tiny&where=number+%3E+0", scheme=scheme)
    page.wait("document.getElementById('overlap')")
    page.press("ArrowDown")  # a result that is in both lists stands on another colour
    texts = page.value(TEXTS)
    assert len(texts) > 100
    for text, colour, under in texts:
        light, dark = sorted((luminance(colour), luminance(under)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, colour, under)
    assert (sum(texts[0][2]) > 384) == (scheme == "light")


def test_everything_that_can_be_used_has_a_name(opened, url):
    page = opened(f"{url}/?q={quote(QUERY)}&compare=1&where=old")
    page.wait("document.getElementById('overlap')")
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    usable = [
        node
        for node in nodes
        if node.get("role", {}).get("value") in ("textbox", "button", "radio", "switch", "list", "link")
    ]
    assert {node["role"]["value"] for node in usable} == {"textbox", "button", "radio", "switch", "list", "link"}
    named = {node["role"]["value"]: node["name"]["value"] for node in reversed(usable) if node["name"]["value"]}
    assert named["textbox"] == "Question"
    assert named["switch"] == "Compare with the teacher"
    assert all(node["name"]["value"] for node in usable if node["role"]["value"] != "list")
