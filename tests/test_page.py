"""The page: everything from outside is escaped, tables and pictures say what they are."""

import pytest
from pages import checked

from neurolm_hf import figures, page


BAD = "<img src=x onerror='a'>&{style}"
GOOD = "&lt;img src=x onerror=&#x27;a&#x27;&gt;&amp;{style}"


def test_text_from_outside_is_escaped_wherever_it_stands(tmp_path):
    parts = [
        page.paragraph(BAD),
        page.bullets([BAD, BAD]),
        page.table((BAD, BAD), [(BAD, BAD)], caption=BAD),
        page.picture(tmp_path, "a", figures.plot_codebook_usage([1]), alt=BAD, caption=BAD),
    ]
    path = page.write_page(tmp_path, BAD, [page.section(BAD, *parts)], lead=BAD)
    written = path.read_text()
    assert BAD not in written
    # paragraph, two bullets, two heads, two cells, caption and label of the table, alt, caption of the picture,
    # heading; title, heading of the page, lead, description
    assert written.count(GOOD) == 1 + 2 + 2 + 2 + 2 + 2 + 1 + 4
    assert written.count("<img") == 1


def test_a_page_is_complete_in_itself_and_fits_screens(tmp_path):
    drawn = page.picture(tmp_path / "new", "usage", figures.plot_codebook_usage([1, 2]), "How often codes are used")
    path = page.write_page(tmp_path / "new", "Title", [page.section("One", drawn)], lead="What it is.")
    text, headings = checked(path)
    assert headings == ["One"]
    assert text.split()[:5] == ["Title", "What", "it", "is.", "One"]
    written = path.read_text()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in written
    assert '<html lang="en">' in written
    for rule in ("@media print", "prefers-color-scheme: dark", "break-inside: avoid", "max-width: 100%"):
        assert rule in written


def test_tables_name_rows_columns_and_themselves():
    written = page.table(("Who", "Score", "Other"), [("a", "1", "2")], caption="Scores", numbers=True, bold=2)
    assert "<table class=numbers><caption>Scores</caption>" in written
    assert written.count("<th scope=col>") == 3
    assert "<tr><th scope=row>a</th><td>1</td><td class=bold>2</td></tr>" in written
    assert 'role=region tabindex=0 aria-label="Scores"' in written


def test_what_must_not_be_missed_stands_out():
    assert page.paragraph("Careful.", kind="warning") == "<p class=warning>Careful.</p>"


@pytest.mark.parametrize("name", ["../escape", "a/b", "", "-flag", "a b", "a.png"])
def test_names_that_are_no_file_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="figure names become file names"):
        page.picture(tmp_path / "new", name, figures.plot_codebook_usage([1]), "alt")
    assert not list(tmp_path.iterdir())
