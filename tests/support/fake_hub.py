"""The hub, as far as uploading needs it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub


class FakeApi:
    """Stands for `HfApi`; remembers what was uploaded."""

    token: Any = None
    created: tuple[str, dict[str, Any]]
    uploaded: dict[str, Any]
    files: set[str]
    error: Exception | None = None

    def __init__(self, token: Any = None) -> None:
        type(self).token = token

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        if self.error:
            raise self.error
        type(self).created = (repo_id, options)
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def upload_folder(self, *, folder_path: Path, **options: Any) -> Any:
        names = [str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()]
        kept = huggingface_hub.utils.filter_repo_objects(names, ignore_patterns=options.pop("ignore_patterns"))
        type(self).files = set(kept)
        type(self).uploaded = options
        return SimpleNamespace(commit_url=f"https://hub/{options['repo_id']}/commit/1")
