"""The pages that are notebooks: their code runs, prints what they say, and draws where they have a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import script

NOTEBOOKS = script("notebooks")
DOCS = Path(__file__).parent.parent.parent / "docs"

PAGE = """# Title

The page is also [a notebook](notebooks/x.ipynb): open it.

First, [a link](other.md#part) and [another](https://example.org).

```python
print(1)
```

```text
1
```

<details>
<summary>Solution</summary>

```python
plot()
```

![A plot](x/plot.png)

Done.

</details>
"""


# Some ten seconds each; `make docs` executes them all, too.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["evening", "few-steps", "inversion"])
def test_a_page_prints_and_draws_what_it_says(name: str) -> None:
    pytest.importorskip("matplotlib")
    assert not NOTEBOOKS.run(name, write=False), f"python scripts/notebooks.py {name} writes it anew"


@pytest.mark.parametrize("name", NOTEBOOKS.PAGES)
def test_a_notebook_is_its_page(name: str) -> None:
    written = (DOCS / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    assert written == NOTEBOOKS.notebook(name), f"python scripts/notebooks.py {name} makes it anew"


def test_the_notebooks_are_those_of_the_pages() -> None:
    assert {path.stem for path in (DOCS / "notebooks").glob("*.ipynb")} == set(NOTEBOOKS.PAGES)
    for name in NOTEBOOKS.PAGES:
        drawn = {cell.picture for cell in NOTEBOOKS.cells((DOCS / f"{name}.md").read_text(encoding="utf-8"))} - {None}
        assert {path.relative_to(DOCS).as_posix() for path in (DOCS / name).glob("*")} == drawn


def test_the_cells_of_a_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text(PAGE, encoding="utf-8")
    monkeypatch.setattr(NOTEBOOKS, "DOCS", tmp_path)
    made = json.loads(NOTEBOOKS.notebook("x"))["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in made] == [
        ("markdown", "# Title\n\nFirst, [a link](../other.md#part) and [another](https://example.org)."),
        ("code", "print(1)"),
        ("markdown", "**Solution**"),
        ("code", "plot()"),
        ("markdown", "Done."),
    ]


def test_what_a_page_says_wrongly_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = PAGE.replace("plot()", "x = 2").replace("```text\n1\n", "```text\n1.3\n")
    (tmp_path / "x.md").write_text(page, encoding="utf-8")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(NOTEBOOKS, "DOCS", tmp_path)
    wrong = NOTEBOOKS.run("x", write=False)
    assert len(wrong) == 2
    assert "x.md says '1.3\\n', but this prints '1\\n'" in wrong[0]
    assert "needs a picture where its code draws one, and none where not" in wrong[1]
    NOTEBOOKS.run("x", write=True)
    assert "```text\n1\n```" in (tmp_path / "x.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("error 0.123", "error 0.124", True),
        ("error 0.123", "error 0.153", False),
        ("3 of 4", "4 of 4", False),
        ("mean 0.0", "mean 0.1", False),
        ("a 1", "b 1", False),
    ],
)
def test_figures_may_differ_a_little_between_machines(one: str, other: str, alike: bool) -> None:
    assert NOTEBOOKS.alike(one, other) == alike
