"""What the tests of the studio share: a running one, and browsers."""

from browsing import chromium, studio, visit, visitor

__all__ = ["chromium", "studio", "visit", "visitor"]
