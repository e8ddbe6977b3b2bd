"""Where a checkpoint's files are: in a folder, in a model bundled with this package, or on the Hugging Face hub.

A file's name may come from another file of the checkpoint, which anyone may have written. So a name that would lead out
of the checkpoint's folder is refused. From the hub only files that are asked for by name are downloaded. Where it
does not answer within two seconds, what is in the cache is used.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ddim.checkpoint.files import read_json
from ddim.checkpoint.nearby import alike, did_you_mean, nearby
from ddim.errors import CheckpointError

BUNDLED = Path(__file__).parent.parent / "weights"
# A folder that has this file adds to a bundled model that it names, which has the rest: see `checkpoint.difference`.
BASE = "base.json"
# If a folder is called as a bundled model is, the folder is meant if it has one of these files.
_PIPELINE, _NETWORK = "model_index.json", "config.json"
_CONFIGS = (_PIPELINE, _NETWORK, "scheduler_config.json")

PATIENCE = 2.0  # how many seconds to wait for the hub's first answer
_REMEMBERED = 60.0  # for how many seconds it is taken for as it was
_reached: dict[str, tuple[float, bool]] = {}  # the hub's address -> when it was asked, and whether it answered


def bundled_models() -> list[str]:
    """The names of the models that are bundled with the package, sorted."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{_PIPELINE}"))


def bundled_controlnets() -> list[str]:
    """The names of the ControlNets that are bundled with the package, sorted. Each names its model in its base.json."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{_NETWORK}"))


def _is_bundled(name: str) -> bool:
    """Whether a model or network of this name is bundled. Asked for every file of it, it looks at no other."""
    return name in os.listdir(BUNDLED) and any((BUNDLED / name / file).is_file() for file in (_PIPELINE, _NETWORK))


def base_of(folder: Path) -> Path | None:
    """The folder of the bundled model that has what a model's folder does not have itself; None if it has all.

    Raises:
        CheckpointError: the folder names no bundled model, or one that has not all itself.
    """
    path = folder / BASE
    if not path.is_file():
        return None
    name = read_json(path).get("base")
    if not isinstance(name, str) or not _is_bundled(name) or (BUNDLED / name / BASE).is_file():
        raise CheckpointError(
            f"{path} names {str(name)[:200]!r} as the model that {folder} adds to, and is to name "
            "a bundled model that is whole"
        )
    return BUNDLED / name


@dataclass(frozen=True)
class Repository:
    """Where a checkpoint's files come from. All attributes but `name` matter for the hub only.

    Attributes:
        name: a folder, a bundled model, or "name" or "owner/name" on the hub.
        revision: a branch, tag or commit.
        token: gives access to private repositories; True takes the token that `hf auth login` stored.
        cache_dir: where downloaded files are kept; the hub's usual cache unless told.
        local_files_only: download nothing and use the cache alone.
        force_download: download even what is in the cache.
    """

    name: str
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False

    @classmethod
    def open(cls, name: str | os.PathLike[str], options: dict[str, Any]) -> Repository:
        """A repository with those of `options` that are attributes of it; they are removed from `options`.

        Raises:
            TypeError: `name` is neither a str nor a path.
        """
        if not isinstance(name, (str, os.PathLike)):
            raise TypeError(f"a checkpoint is a path or a hub id, not {type(name).__name__}")
        own = {field.name for field in fields(cls)} - {"name"}
        return cls(os.fspath(name), **{key: options.pop(key) for key in own & set(options)})

    def __str__(self) -> str:
        why = self._cache_only()
        return f"{self.name} (in the cache; {why})" if why else self.name

    def _cache_only(self) -> str | None:
        """Why the files come from the hub's cache and nowhere else; None if they do not."""
        if self.folder is not None:
            return None
        if self.local_files_only:
            return "local_files_only is set"
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set"
        return None if reachable() else "the hub cannot be reached"

    @property
    def folder(self) -> Path | None:
        """The folder that the files are in, or None for a repository of the hub."""
        local = Path(self.name)
        bundled = _is_bundled(self.name)
        if self.name and os.path.isdir(local) and not (bundled and not any((local / c).is_file() for c in _CONFIGS)):
            return local
        return BUNDLED / self.name if bundled else None

    @property
    def base(self) -> Path | None:
        """The folder of the bundled model that this one adds to; None if it has all itself. See `base_of`."""
        return base_of(self.folder) if self.folder is not None else None

    def find(self, filename: str, subfolder: str | None = None) -> Path | None:
        """The local path of one of the repository's files, downloaded if need be; None if there is no such file.

        Args:
            filename: the file, relative to `subfolder`.
            subfolder: a folder in the repository.

        Raises:
            CheckpointError: the name leads out of the repository, or the repository cannot be reached.
        """
        relative = "/".join(part for part in (subfolder, filename) if part)
        if relative.startswith("/") or ".." in relative.split("/") or re.search(r"[\\:\0]", relative):
            raise CheckpointError(f"{relative[:200]!r} is not a path inside a checkpoint ({self.name})")
        folder = self.folder
        if folder is not None:
            found = _inside(folder, relative)
            if found is None and filename != _PIPELINE and (base := self.base) is not None:
                return _inside(base, relative)
            return found
        self.check_name()
        return self._download(relative)

    def find_weights(
        self, names: Sequence[str], weight_name: str | None, subfolder: str | None, suffixes: tuple[str, ...]
    ) -> Path:
        """The local path of a file of weights that may have several names.

        Args:
            names: that it usually has, the likeliest first. Of a folder, the only file that ends in one of `suffixes`
                is taken, too.
            weight_name: the name, if the caller gave one.
            subfolder: a folder in the repository.

        Raises:
            CheckpointError: there is no such file, or `find` cannot look for it.
        """
        wanted = [weight_name] if weight_name else [*names]
        if self.folder is not None and not weight_name:
            inside = self.folder / (subfolder or "")
            others = [path.name for path in inside.glob("*") if path.suffix in suffixes]
            wanted += others if len(others) == 1 else []
        for name in wanted:
            path = self.find(name, subfolder)
            if path is not None:
                return path
        where = f"{self}/{subfolder}" if subfolder else str(self)
        raise CheckpointError(
            f"there is no {' or '.join(wanted)} in {where}; if it is called otherwise, give weight_name="
        )

    def check_name(self) -> None:
        """Refuse what is neither a folder nor a bundled model, nor can be on the hub, which is not asked.

        A name without "/" that is nearly a bundled model's is taken for a slip.

        Raises:
            CheckpointError: says what may have been meant, if anything is like it.
        """
        if self.folder is not None:
            return
        if os.path.isfile(self.name):
            single = "; a whole Stable Diffusion in one file is loaded by DiffusionPipeline.from_single_file"
            raise CheckpointError(
                f"{self.name} is a file: give the folder that it is in" + single * self.name.endswith(".safetensors")
            )
        if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", self.name):
            meant = did_you_mean(self._meant())
            raise CheckpointError(
                f"there is no folder {self.name[:300]!r}" + (meant or ", nor can a repository of the hub be called so")
            )
        if "/" not in self.name and alike(self.name, bundled_models()):
            raise CheckpointError(f"there is no model {self.name}{did_you_mean(self._meant())}")

    def _meant(self) -> str | None:
        """What the name may have been meant to be: a folder nearby, or a bundled model."""
        folder = nearby(self.name, lambda path: any((path / config).is_file() for config in _CONFIGS))
        bundled = alike(Path(self.name).name, bundled_models())
        if folder is None or bundled is None:
            return folder or bundled
        return f"{bundled} or {folder}"

    def _download(self, relative: str) -> Path | None:
        """The path in the hub's cache of a file, downloaded if it is not there; None if the repository has no such."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        cache_only = self._cache_only()
        if cache_only and self.force_download:
            raise CheckpointError(f"{self.name}/{relative} cannot be downloaded: {cache_only}")
        try:
            return Path(
                hf_hub_download(
                    self.name,
                    relative,
                    revision=self.revision,
                    token=self.token,
                    cache_dir=self.cache_dir,
                    local_files_only=cache_only is not None,
                    force_download=self.force_download,
                )
            )
        except LocalEntryNotFoundError as error:  # a subclass of EntryNotFoundError, but the file may exist on the hub
            if self._is_known_to_lack(relative):
                return None
            why = cache_only or "the hub cannot be reached"
            raise CheckpointError(
                f"{self.name}/{relative} is not in the cache, and {why}; {self._not_local()}"
            ) from error
        except EntryNotFoundError:
            return None
        except Exception as error:  # the hub's client raises many kinds: of the network, of access, of names
            raise CheckpointError(
                f"{self._not_local()}, and the hub gave {type(error).__name__}: {str(error)[:500]}"
            ) from error

    def _is_known_to_lack(self, relative: str) -> bool:
        """Whether the cache says, without a connection, that the repository has no such file."""
        from huggingface_hub import _CACHED_NO_EXIST, snapshot_download, try_to_load_from_cache
        from huggingface_hub.errors import LocalEntryNotFoundError

        known = try_to_load_from_cache(self.name, relative, cache_dir=self.cache_dir, revision=self.revision)
        if known is _CACHED_NO_EXIST:
            return True
        if not self._cache_only():
            return False
        try:  # if nothing may be downloaded and the revision is in the cache, a file that is not in it does not exist
            snapshot_download(self.name, revision=self.revision, cache_dir=self.cache_dir, local_files_only=True)
        except LocalEntryNotFoundError:
            return False
        return True

    def _not_local(self) -> str:
        """The words of an error that say what else the name could have been."""
        known = ", ".join(bundled_models()) or "there are none"
        return f"{self.name} is no local folder or bundled model ({known}){did_you_mean(self._meant())}"


def reachable() -> bool:
    """Whether the hub answers within two seconds, which is asked at most once a minute.

    The hub's client would try for half a minute, for each file; and no time limit of its own ends the search for an
    address. So a thread asks, which is left behind when it takes too long.
    """
    from huggingface_hub import constants, get_session

    address = constants.ENDPOINT
    asked, answered = _reached.get(address, (-_REMEMBERED, False))
    if time.monotonic() - asked < _REMEMBERED:
        return answered
    answers: list[object] = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # the client raises many kinds, and each says the same
            answers.append(get_session().head(address, timeout=PATIENCE))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    _reached[address] = (time.monotonic(), bool(answers))
    return bool(answers)


def _inside(root: Path, relative: str) -> Path | None:
    """`root/relative` if it is a file, else None; a CheckpointError if a link leads out of the checkpoint."""
    path = root / relative
    if not os.path.isfile(path):
        return None
    home = root.resolve()
    blobs = home.parent.parent / "blobs"
    if path.is_symlink() and home.parent.name == "snapshots" and home.parent.parent.name.startswith("models--"):
        target = Path(os.path.normpath(path.parent.resolve() / path.readlink()))
        if target.parent == blobs:  # in the hub's cache, where every file of a snapshot is a link to a blob
            return path
    if not path.resolve().is_relative_to(home):
        raise CheckpointError(f"{path} is a link that leads out of the checkpoint {root}: put the file itself there")
    return path


def upload(
    folder: str | os.PathLike[str],
    repo_id: str | None = None,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> str:
    """Upload a folder to a repository of the hub, which is made if it is not there.

    Args:
        folder: everything in it is uploaded, except temporary files that an interrupted write left behind.
        repo_id: "name" or "owner/name"; the folder's name unless told.
        commit_message: the commit's message; "Upload with ddim" unless told.
        private: whether a repository that is made is private; the hub's default for you unless told.
        token: as in `Repository`.
        revision: the branch to commit to; the main one unless told.
        create_pr: open a pull request with the commit.
        subfolder: the folder in the repository that the files go into; its root unless told.

    Returns:
        The commit's URL.

    Raises:
        CheckpointError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    repo_id = repo_id or Path(folder).resolve().name
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(folder),
            path_in_repo=subfolder,
            commit_message=commit_message or "Upload with ddim",
            revision=revision,
            create_pr=create_pr,
            ignore_patterns=[".*.tmp*", "*/.*.tmp*"],  # the files that `atomic_write` leaves when the process is killed
        )
    except Exception as error:  # the hub's client raises many kinds: of the network, of access, of names
        raise CheckpointError(
            f"{folder} was not uploaded to {repo_id}: the hub gave {type(error).__name__}: {str(error)[:500]}"
        ) from error
    return str(commit.commit_url)
