"""How Sphinx makes the site of these pages: `make docs` runs it, into build/docs/<version>/."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

from ddim import __version__  # noqa: E402

project = "ddim"
author = "The ddim developers"
version = release = __version__
html_title = f"ddim {__version__}"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
    "descriptions",
    "docstrings",
    "formulas",
    "links",
    "navigation",
    "notebooks",
    "reference",
    "repository",
    "versions",
    "words",
]
exclude_patterns = ["_ext", "_static", "_templates", "notebooks"]
templates_path = ["_templates"]

# Pages. A heading may be linked to as on GitHub: training.md#resuming.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
myst_dmath_double_inline = True
html_math_renderer = "mathml"
suppress_warnings = [
    "misc.highlighting_failure",
    "ref.python",  # an attribute that several classes have by one name, such as denoising_start
]

# The reference. Types are named as the code names them (`Eta`, not what it stands for), and link to what they are.
default_role = "py:obj"
add_module_names = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
toc_object_entries = False  # thousands of entries, which every page would copy: see the list below each module
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_preprocess_types = False
napoleon_use_ivar = True

# The look: nothing is asked of another host, and the pages and their search work from files as well.
html_theme = "furo"
pygments_dark_style = "github-dark"  # Furo's own underlines modules
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#7a3aa3", "color-brand-content": "#7a3aa3"},
    "dark_css_variables": {"color-brand-primary": "#d3a6f0", "color-brand-content": "#d3a6f0"},
    "navigation_with_keys": True,
    "top_of_page_buttons": [],
}
# Once scripts/home has written where the project lives, each page has links to its text there.
home = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"].get("Source", "")
if home.startswith("https://github.com/"):
    html_theme_options |= {
        "source_repository": home,
        "source_branch": "main",
        "source_directory": "docs/",
        "top_of_page_buttons": ["view", "edit"],
    }
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
        "versions.html",
    ]
}
