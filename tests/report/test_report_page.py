import html
import io
import re
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from rich.console import Console

from fewstep.errors import FewstepError
from fewstep.report import (
    Code,
    Column,
    FactList,
    Figure,
    Highlights,
    ImageGrid,
    LinkList,
    Note,
    Page,
    Table,
    TableRow,
    TokenStrip,
    figures,
    images,
    render,
    save_page,
    to_rich,
)

from ..browsing import Browser

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
EVIL = "<script>alert('x')</script> & \"quotes\""


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


def table():
    return Table(
        EVIL,
        [Column("MMD", "x1000", "lower", 2), Column("judge", EVIL, "higher", 3), Column("words")],
        [
            TableRow("teacher", [0.10, 0.9, "far"], reference=True),
            TableRow("plain", [{"mean": 3.004, "low": 2.5, "high": 3.5}, 0.25, EVIL]),
            TableRow("tuned " + EVIL, [Interval(1.0, 0.5, 1.5), None, None], note=EVIL),
            TableRow("tie", [1.001, 0.20, "-"]),
        ],
    )


def page():
    picture = torch.rand(3, 16, 16)
    return Page(
        "Report " + EVIL,
        "Summary " + EVIL,
        [
            Highlights("", [("6.1x", EVIL, "note")]),
            table(),
            ImageGrid("Images", [[picture] * 5] * 2, ["a long prompt " * 5, EVIL], [f"system {i}" for i in range(5)]),
            Figure("Bars", figures.bars({"bytes": {"float32": 4.0, "w4a8": 1.0}}, unit="MB")),
            Code("Again", "fewstep run q-sched --set " + "long=" * 60),
            FactList("Environment", {"torch": "2.13", EVIL: EVIL, "none": None}),
            LinkList("Others", [("#there", EVIL, EVIL, ""), ("#here", "title", "line", images.data_uri(picture))]),
            Note("one\n\ntwo " + EVIL, title="Note", tone="warning"),
            TokenStrip("Order", [(EVIL, [(EVIL, 0.0), ("given", None), ("late", 1.0)])]),
        ],
    )


class Checker(HTMLParser):
    """Collects what could reach out of the file, and checks that every element is closed."""

    VOID = {"meta", "link", "img", "br", "path", "use", "rect"}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.open, self.references, self.scripts, self.ids = [], [], 0, []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                self.references.append(value)
            if name.startswith("on"):
                raise AssertionError(f"event handler {name}")
            if name == "id" and tag == "section":
                self.ids.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_page_is_well_formed_self_contained_and_escaped():
    text = render(page())
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert checker.scripts == 1  # the one that flips pictures
    assert "<script" not in render(Page("t", "s", [table()]))
    assert all(r.startswith(("data:", "#")) for r in checker.references)
    assert not re.search(r"url\((?!#)|@import", text)
    assert EVIL not in text
    assert len(set(checker.ids)) == len(page().blocks)
    assert {r[1:] for r in checker.references if r.startswith("#") and r[1:] in checker.ids} >= set(checker.ids[1:])


def test_best_values_ignore_references_and_share_ties():
    best = [[cell[2] for cell in row] for row in table().cells()]
    # lower MMD: 1.0 and 1.001 are the same at two digits; higher judge: 0.25, the teacher does not compete
    assert best == [[False] * 3, [False, True, False], [True, False, False], [True, False, False]]


def test_intervals_come_from_mappings_and_objects():
    cells = table().cells()
    assert cells[1][0][:2] == ("3.00", "2.50 to 3.50")
    assert cells[2][0][:2] == ("1.00", "0.50 to 1.50")
    assert cells[2][1][0] == "–"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.tensor(2.0), True, 3])
def test_odd_values_do_not_break_a_table(value):
    odd = Table(
        "t", [Column("c", better="higher")], [TableRow("a", [value]), TableRow("b", [1.0]), TableRow("c", [0.0])]
    )
    render(Page("t", "s", [odd]))
    cells = odd.cells()
    assert [c[0][2] for c in cells].count(True) == 1
    assert not cells[2][0][2]


def test_long_tables_are_folded():
    def shown(count):
        return render(Page("t", "s", [Table("t", [Column("c")], [TableRow(f"r{i}", [i]) for i in range(count)])]))

    assert "<details>" not in shown(24)
    assert "Show all 25 rows" in shown(25)


def test_mistakes_are_named():
    with pytest.raises(FewstepError, match="'a'"):
        Table("t", [Column("c")], [TableRow("a", [1, 2])])
    with pytest.raises(FewstepError, match="grid 'g'"):
        ImageGrid("g", [[torch.zeros(3, 4, 4)]], ["a", "b"], ["c"])
    with pytest.raises(FewstepError, match="self-contained"):
        Figure("f", "https://example.org/a.png")
    with pytest.raises(FewstepError, match="shape"):
        images.data_uri(torch.zeros(4, 4))


def test_terminal_table_has_every_row_and_escapes_markup():
    shown = Table("[bold]", [Column("[red]c", better="lower")], [TableRow("[x]", [1.5]), TableRow("b", [2.5])])
    console = Console(width=200, file=io.StringIO())
    console.print(to_rich(shown))
    text = console.file.getvalue()
    assert all(word in text for word in ("[bold]", "[red]c", "[x]", "1.500", "2.500"))


def test_png_round_trip_is_exact_and_nan_is_visible(tmp_path):
    pixels = torch.randint(0, 256, (3, 5, 7))
    images.save_image(pixels / 255, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (7, 5)
        flat = [image.getpixel((x, y)) for y in range(5) for x in range(7)]
    assert flat == [tuple(p) for p in pixels.permute(1, 2, 0).reshape(-1, 3).tolist()]
    assert images.to_pil(torch.full((3, 1, 1), float("nan"))).getpixel((0, 0)) == (255, 0, 255)


def test_grid_places_every_image():
    batch = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2) / 10
    sheet = images.image_grid(batch, columns=3, gap=1, zoom=2)
    assert sheet.shape == (3, 2 * 4 + 1, 3 * 4 + 2)
    assert sheet[0, 5, 5] == 0.4
    assert sheet[0, 0, 0] == 0.0
    assert sheet[0, 8, 13] == 1.0  # the empty place is white


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1200])
def test_browser_shows_it_without_sideways_scrolling(tmp_path, width, chromium):
    body = html.escape(render(page()), quote=True)
    (tmp_path / "frame.html").write_text(
        f'<body style="margin:0"><iframe id=f style="width:{width}px;height:2000px;border:0" srcdoc="{body}"></iframe>'
        "<script>onload = () => { const d = f.contentDocument;"
        "document.title = d.documentElement.scrollWidth + ' ' + d.querySelectorAll('section').length + ' '"
        " + [...d.images].filter(i => i.complete && i.naturalWidth == 16).length }</script>"
    )
    save_page(page(), tmp_path / "report.html")

    def browse(*flags, file):
        command = [chromium, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, (tmp_path / file).as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    dom = browse("--virtual-time-budget=3000", "--dump-dom", file="frame.html")
    measured = re.search(r"<title>(\d+) (\d+) (\d+)</title>", dom)
    assert measured, dom[:300]
    assert [int(n) for n in measured.groups()] == [width, len(page().blocks), 11]

    browse(f"--window-size={width},1400", f"--screenshot={tmp_path / 'shot.png'}", file="report.html")
    with Image.open(tmp_path / "shot.png") as shot:
        assert len(shot.convert("RGB").getcolors(1 << 24)) > 50  # text and pictures, not a blank page


@pytest.mark.browser
def test_an_enlarged_picture_flips_to_its_neighbours(tmp_path, chromium):
    pictures = [[torch.full((3, 8, 8), (3 * i + j) / 8) for j in range(3)] for i in range(2)]
    grid = ImageGrid("Images", pictures, ["cat", "dog"], ["float", "low", "tuned"])
    place = save_page(Page("t", "s", [grid]), tmp_path / "report.html")
    browser = Browser(chromium, tmp_path / "profile")
    try:
        browser.tell("Page.navigate", url=place.as_uri())
        browser.until("document.readyState === 'complete' && document.images.length === 6")
        browser.value("document.images[1].focus()")
        boxes, where = [], "JSON.stringify(document.activeElement.getBoundingClientRect())"
        for key, code, expected in [
            ("ArrowRight", 39, "tuned: cat"), ("ArrowRight", 39, "tuned: cat"), ("ArrowDown", 40, "tuned: dog"),
            ("ArrowLeft", 37, "low: dog"), ("ArrowUp", 38, "low: cat"), ("ArrowUp", 38, "low: cat"),
        ]:  # fmt: skip
            browser.press(key, code)
            assert browser.value("document.activeElement.alt") == expected
            assert expected in browser.value("document.getElementById('zoomed').textContent")
            boxes.append(browser.value(where))
        assert len(set(boxes)) == 1  # at the same place, so that differences are seen
        assert browser.value("document.activeElement.clientWidth > 8 * document.images[0].clientWidth / 8")
        browser.press("Escape", 27)
        assert browser.value("document.activeElement === document.body")
    finally:
        browser.close()


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("b.jpg", "JPEG"), ("c.JPEG", "JPEG"), ("d.webp", "WEBP")]
)
def test_a_picture_has_the_format_of_its_ending_and_is_known_as_ours(tmp_path, name, kind):
    smooth = torch.linspace(0, 1, 64).expand(3, 64, 64)
    images.save_image(smooth, tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        assert picture.format == kind
        difference = (torch.tensor(list(picture.convert("RGB").getdata())).reshape(64, 64, 3) / 255 - 0).permute(
            2, 0, 1
        ) - smooth
    assert difference.abs().max() < (0.03 if kind == "JPEG" else 0.003)
    images.save_image(1 - smooth, tmp_path / name)  # ours: may be replaced
    Image.new("RGB", (8, 8)).save(tmp_path / name, format=kind)
    with pytest.raises(FewstepError, match="did not write it"):
        images.save_image(smooth, tmp_path / name)


def test_a_name_that_is_free(tmp_path):
    for name in ("image.png", "image-2.png", "image-3.png"):
        free = images.free_name(tmp_path / "image.png")
        assert free.name == name
        free.touch()


def test_a_page_replaces_pages_of_ours_only(tmp_path):
    save_page(Page("one", "s", label="x", footer="f"), tmp_path / "a.html")
    save_page(Page("two", "s"), tmp_path / "a.html")
    (tmp_path / "a.html").write_text("<!doctype html><html>my page about fewstep</html>")
    with pytest.raises(FewstepError, match="did not write it"):
        save_page(Page("three", "s"), tmp_path / "a.html")
