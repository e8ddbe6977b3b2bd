"""A CLIP tokenizer and prompts for it, made on the spot: the whole layout of the published ones, and few merges."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = (
    "a an the of in on with photo painting cat dog lion galaxies stars smoke red heart blue castle blurry bad".split()
)
START, END = "<|startoftext|>", "<|endoftext|>"

ODD_WORDS = """
a photo of Cat's DOGS we'll they've naïve café Straße İstanbul ΣΊΣΥΦΟΣ ﬁne Ⅷ ½ 2023 3.14 C++ <|startoftext|>
<|endoftext|> <|ENDOFTEXT|> <|StartOfText|> <|endoftext |> ! !! !? (masterpiece:1.2) [x] {y|z} &amp; &lt;b&gt; &#39;
&amp;amp; 日本語 中文 한국어 العربية עברית ไทย हिन्दी 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️ </w> a</w> Ġ Ċ ' 's 'S '' -- ... … — “q” ‘q’
\\ / _ __ # @ ~ ` | ^ % *lion* ((heart)) <cat-toy> <CAT-TOY> photo, photo. RED red-heart
""".split()
ODD_WORDS += ["\u200b", "\u200d", "\ufeff", "\u00a0", "\u3000", "\x00", "\x07", "\x1b[0m", "\t", "\n", "\r\n", "\x85"]
ODD_WORDS += ["\u2028", "e\u0301", "\u212b", "\ufffd", "\U0010ffff", "\U000e0041", "\x7f", "a\u0300\u0301\u0302"]


def odd_prompts(count: int, seed: int = 0) -> list[str]:
    """Prompts of everything that people and programs type: empty, blank, very long, control characters, emoji."""
    rnd = random.Random(seed)
    prompts = ["", " ", "\n\t ", "a" * 5000, "🙂" * 300, "photo " * 75, "photo " * 76, "!" * 100, END * 80]
    planes = [(0, 0x2FF), (0x300, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    while len(prompts) < count:
        kind = rnd.random()
        if kind < 0.05:
            prompts.append(rnd.choice(" \t\n") * rnd.randint(1, 9))
        elif kind < 0.3:
            prompts.append("".join(chr(rnd.randint(*rnd.choice(planes))) for _ in range(rnd.randint(1, 60))))
        else:
            words = [rnd.choice(ODD_WORDS) + rnd.choice(["", " ", " ", "  "]) for _ in range(rnd.randint(1, 60))]
            prompts.append("".join(words) * (20 if kind > 0.97 else 1))
    return prompts


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """All bytes, within a word and at its end; the merges that make WORDS; the two special tokens last."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(code) for code in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = symbols + [f"{symbol}</w>" for symbol in symbols]
    merges: list[str] = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            if merge not in merges:
                merges.append(merge)
                tokens.append(parts[0] + parts[1])
            parts = [parts[0] + parts[1], *parts[2:]]
    tokens += [START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def write_tokenizer(folder: Path, pad: str = END, **config: Any) -> None:
    """The files of Stable Diffusion 1 (or 2, with pad="!"), with the settings that they have there."""
    vocab, merges = vocabulary()
    traits = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {name: {"content": text, **traits} for name, text in (("bos_token", START), ("eos_token", END))}
    special["unk_token"] = special["eos_token"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": pad}))
    typed = {name: {"__type": "AddedToken", **token} for name, token in special.items()}
    common = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "tokenizer_class": "CLIPTokenizer"}
    values = {**typed, **common, "pad_token": END, "model_max_length": 77, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
