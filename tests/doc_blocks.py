"""Parts of docs/ that tests write themselves: what stands between two marks is a test's own output.

With BAMBOO_WRITE_DOCS=1 the test that makes a block puts it into the doc; without, the doc is only read.
"""

import os
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def read_block(doc: str, name: str) -> str:
    """Returns what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->` in docs/DOC, line ends at both sides left out."""
    return _parts(doc, name)[1].strip("\n")


def offer_block(doc: str, name: str, text: str) -> None:
    """Puts a text in the place of the one between the marks, if the docs are to be written."""
    if os.environ.get("BAMBOO_WRITE_DOCS") == "1":
        before, _, after = _parts(doc, name)
        (DOCS / doc).write_text(f"{before}\n{text.strip()}\n{after}")


def _parts(doc: str, name: str) -> tuple[str, str, str]:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = (DOCS / doc).read_text().partition(begin)
    inside, closed, after = rest.partition(end)
    assert found and closed, f"docs/{doc} has no {begin} … {end}"  # both marks or none
    return before + begin, inside, end + after
