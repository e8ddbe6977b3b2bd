"""`ddim completion`: what makes a shell complete the commands, their options, and what these may be.

The scripts hold all of it, so that pressing the Tab key starts no program. That of zsh is bash's, which zsh can read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import tyro

from ddim.cli.help import Option, options, summary

Shell = Literal["bash", "zsh", "fish"]

# Words that the options take, for which a shell is to offer files.
_FILES = ("PATH", "MODEL", "FOLDER")


@dataclass(frozen=True)
class CompletionSettings:
    """Print a script by which a shell completes the commands and their options when the Tab key is pressed.

    For bash, put `source <(ddim completion bash)` into ~/.bashrc; for zsh, `source <(ddim completion zsh)` into
    ~/.zshrc; for fish, `ddim completion fish | source` into ~/.config/fish/config.fish.

        ddim completion bash
    """

    shell: tyro.conf.Positional[Shell]
    """The shell that the script is for: bash, zsh or fish."""


def run_completion(settings: CompletionSettings) -> str:
    from ddim.cli import COMMANDS, load

    commands = {words: load(command.settings) for words, command in COMMANDS.items()}
    if settings.shell == "fish":
        return fish(commands)
    return bash(commands) if settings.shell == "bash" else _ZSH + bash(commands)


_ZSH = """\
autoload -Uz compinit bashcompinit
(( $+functions[compdef] )) || compinit
bashcompinit

"""

_BASH = """\
_ddim() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD - 1]}}" command="${{COMP_WORDS[1]}}"
    local words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{first} --help --version"
    else
        case "$command:$COMP_CWORD" in
{seconds}
        esac
        case "$command" in
            {groups}) [ "$COMP_CWORD" -gt 2 ] && command="$command ${{COMP_WORDS[2]}}" ;;
        esac
        case "$command $previous" in
{values}
        esac
        if [ -z "$words" ] && [ "${{current#-}}" != "$current" ]; then
            case "$command" in
{names}
            esac
        fi
    fi
    [ -n "$words" ] && COMPREPLY=($(compgen -W "$words" -- "$current"))
    return 0
}}
complete -o default -F _ddim ddim
"""


def bash(commands: Mapping[str, type]) -> str:
    """The script for bash, of commands by their words, with their dataclasses."""
    seconds, values, names = [], [], []
    for group, inner in _groups(commands).items():
        seconds.append(_case([f"{group}:2"], [*inner, "--help"]))
    for words, settings in commands.items():
        every = options(words, settings)
        names.append(_case([words], [*(name for option in every for name in option.names), "--help"]))
        for option in every:
            if choices(option) and option.names:
                values.append(_case([f"{words} {name}" for name in option.names], choices(option)))
            elif choices(option):
                seconds.append(_case([f"{words}:2"], choices(option)))
    return _BASH.format(
        first=" ".join(dict.fromkeys(words.split()[0] for words in commands)),
        seconds="\n".join(seconds),
        groups=" | ".join(_groups(commands)),
        values="\n".join(values),
        names="\n".join(names),
    )


def _case(labels: Iterable[str], words: Iterable[str]) -> str:
    """A branch of a `case` of bash: what the words are to be where one of these labels is met."""
    return f"""            {" | ".join(f'"{label}"' for label in labels)}) words="{" ".join(words)}" ;;"""


_FISH = """\
function __ddim_typed  # whether exactly these words stand before the one that is being typed
    set -l typed (commandline -opc)
    test "$typed" = "$argv"
end
function __ddim_is  # whether the command is this one
    set -l typed (commandline -opc)
    set -l wanted (count $argv)
    test (count $typed) -ge $wanted; and test "$typed[1..$wanted]" = "$argv"
end
complete -c ddim -n '__ddim_typed ddim' -l version -d 'Print the version.'
"""


def fish(commands: Mapping[str, type]) -> str:
    """The script for fish, of commands by their words, with their dataclasses."""
    lines = [f"complete -c ddim -n '__ddim_typed ddim' -f -a {group}" for group in _groups(commands)]
    for words, settings in commands.items():
        before, _, last = f"ddim {words}".rpartition(" ")
        lines.append(f"complete -c ddim -n '__ddim_typed {before}' -f -a {last} -d {_quoted(summary(settings))}")
        for option in options(words, settings):
            begin, listed = f"complete -c ddim -n '__ddim_is ddim {words}'", _quoted(" ".join(choices(option)))
            takes = f"-x -a {listed}" if choices(option) else "-r -F" if _takes_files(option) else "-x"
            for name in option.names:
                lines.append(f"{begin} -l {name[2:]} {takes if option.takes else ''} -d {_quoted(option.text)}")
            if choices(option) and not option.names:
                lines.append(f"{begin} -f -a {listed}")
    return _FISH + "\n".join(lines)


def choices(option: Option) -> list[str]:
    """The words that an option may be.

    >>> from ddim.cli.sample import SampleSettings
    >>> [choices(option) for option in options("sample", SampleSettings) if "--eta" in option.names]
    [['sigma_hat']]
    """
    listed = [word for inside in re.findall(r"[{\[](.*?)[}\]]", option.takes) for word in re.split(r"[,|]", inside)]
    return [word for word in listed if re.fullmatch(r"[\w-]+", word)]


def _takes_files(option: Option) -> bool:
    return any(word in option.takes for word in _FILES)


def _groups(commands: Iterable[str]) -> dict[str, list[str]]:
    """The second words of the commands that have two, by the first."""
    groups: dict[str, list[str]] = {}
    for words in commands:
        first, _, second = words.partition(" ")
        if second:
            groups.setdefault(first, []).append(second)
    return groups


def _quoted(text: str) -> str:
    r"""A text as fish reads it.

    >>> print(_quoted("it's"))
    'it\'s'
    """
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
