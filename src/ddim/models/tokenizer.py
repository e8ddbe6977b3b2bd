"""CLIP's tokenizer: from texts to the token ids that Stable Diffusion's text encoder was trained on.

A text is normalised: Unicode is composed (NFC), white space becomes single blanks, and letters become small. Then it is
cut into words, single digits and runs of signs. Last, the UTF-8 bytes of each piece are merged, pair by pair, in the
order of a table that was learnt from data (byte pair encoding, Sennrich et al. 2016). The `tokenizers` library does the
work. A call changes no state, so threads may share a tokenizer.

`ids` is what this package's own code calls: texts to one tensor of ids. Everything else has the names, arguments and
results of transformers' CLIPTokenizer, for code that was written for that one.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from ddim.checkpoint import Repository, Savable, Saving
from ddim.checkpoint.files import read_json, write_json, write_text
from ddim.errors import CheckpointError, ConfigError
from ddim.models.byte_pairs import END, START, WORD_END, add_tokens, byte_pairs, cut_at
from ddim.models.text_encoding import KEEP, TextEncoding, as_tensors, choice, id_lists, refuse_arguments, width_of
from ddim.models.tokenizer_files import CONFIG, VERSION, as_dict, read_merges, read_model, read_settings

LENGTH = 77  # tokens of a text: CLIP has a vector for each of 77 positions
_SHOWN = 500  # how many characters a warning shows of what was cut from a text
_LISTED = 10  # how many texts that were cut a warning shows
# From a long text, so many characters are read first, then more if these are too few tokens, and never more than the
# last. Tokens that nobody sees are not made: ten million characters would take half a minute and more than a gigabyte.
_READ = (2**12, 2**15, 2**18)


def _special(name: str) -> Any:
    """A property of the tokenizer: one of its special tokens, a str."""

    def get(self: CLIPTokenizer) -> str:
        return self.special_tokens[name]

    def put(self: CLIPTokenizer, token: str | AddedToken) -> None:
        if name == "unk_token" or self._tokenizer.token_to_id(str(token)) is None:
            why = "it is fixed" if name == "unk_token" else "add_tokens makes it one"
            raise ValueError(f"{str(token)!r:.50} cannot become the {name}, as it is no token of the vocabulary: {why}")
        self.special_tokens[name] = str(token)

    return property(get, put)


def _special_id(name: str) -> Any:
    """A property of the tokenizer: the id of one of its special tokens."""

    def get(self: CLIPTokenizer) -> int | None:
        index: int | None = self._tokenizer.token_to_id(self.special_tokens[name])
        return index

    def put(self: CLIPTokenizer, index: int) -> None:
        setattr(self, name, self.convert_ids_to_tokens(index))

    return property(get, put)


class CLIPTokenizer(Savable):
    """CLIP's byte pair encoding.

    Args:
        vocab: the id of every token.
        merges: the pairs of tokens that become one token, the most frequent first; each a pair or "left right".
        bos_token, eos_token: the tokens that are put before and after a text.
        unk_token: stands for bytes that are not in the vocabulary.
        pad_token: fills a text up to `model_max_length`. Stable Diffusion 1 uses the end token for it, 2 uses "!".
        added_tokens: further tokens by their ids, which are found in a text before it is cut into pieces.
        extra_special_tokens: further tokens without ids: one that the vocabulary lacks gets the next free id.
        model_max_length: how many tokens a text has with its start, end and padding tokens, 2 or more.

    Raises:
        ConfigError: an id is no id, a merge is of tokens that the vocabulary lacks, the unk_token is not in the
            vocabulary, or `model_max_length` is below 2.
    """

    config_name: ClassVar[str] = CONFIG
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    padding_side: ClassVar[str] = "right"
    truncation_side: ClassVar[str] = "right"
    is_fast: ClassVar[bool] = True

    bos_token, bos_token_id = _special("bos_token"), _special_id("bos_token")
    eos_token, eos_token_id = _special("eos_token"), _special_id("eos_token")
    unk_token, unk_token_id = _special("unk_token"), _special_id("unk_token")
    pad_token, pad_token_id = _special("pad_token"), _special_id("pad_token")

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Iterable[str | Sequence[str]],
        *,
        bos_token: str | AddedToken = START,
        eos_token: str | AddedToken = END,
        unk_token: str | AddedToken = END,
        pad_token: str | AddedToken = END,
        added_tokens: Mapping[int, AddedToken] | None = None,
        extra_special_tokens: Sequence[str | AddedToken] = (),
        model_max_length: int = LENGTH,
    ) -> None:
        if isinstance(model_max_length, bool) or not isinstance(model_max_length, int) or model_max_length < 2:
            raise ConfigError(f"model_max_length must be an int of 2 or more, not {model_max_length!r:.50}")
        self.model_max_length = model_max_length
        named = {"bos_token": bos_token, "eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token}
        self.special_tokens = {name: str(token) for name, token in named.items()}
        self._tokenizer = byte_pairs(vocab, merges, str(unk_token))
        add_tokens(self._tokenizer, added_tokens or {}, list(named.values()), extra_special_tokens)
        self.extra_special_tokens = [str(token) for token in extra_special_tokens]
        self.name_or_path = ""

    # --- texts to tokens and back ------------------------------------------------------------------------------------

    def ids(self, prompts: str | Sequence[str], max_length: int | None = None, *, warn: bool = True) -> Tensor:
        """The token ids of texts, each between a start and an end token and filled up with padding.

        A text that is too long loses its end, and one warning shows everything that was cut.

        Args:
            prompts: a text, or a list of b texts.
            max_length: tokens of each text, 2 or more; `model_max_length` unless told.
            warn: False cuts long texts without a warning.

        Returns:
            (b, max_length) int64.

        Raises:
            TypeError: a prompt is no str.
            ValueError: a text is no valid Unicode (it has lone surrogates), or has more than 262,144 characters and
                too few tokens in the first of them; or `max_length` is below 2.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        length = self.model_max_length if max_length is None else max_length
        if length < 2:
            raise ValueError(f"max_length must be 2 or more, as a text begins and ends with a token; not {length}")
        rows = np.full((len(texts), length), self.pad_token_id, dtype=np.int64)
        lost = []
        for row, text in zip(rows, texts, strict=True):
            encoding = self._encode(text, length - 2)
            ids = encoding.ids
            if len(ids) > length - 2:
                start = encoding.offsets[length - 2][0]
                lost.append((text, start))
                ids = ids[: length - 2]
            row[: len(ids) + 2] = [self.bos_token_id, *ids, self.eos_token_id]
        if lost and warn:
            shown = [repr(text[i : i + _SHOWN]) + " …" * (len(text) - i > _SHOWN) for text, i in lost[:_LISTED]]
            warnings.warn(
                f"the text encoder reads {length} tokens; this was cut from the end of "
                f"{'the prompt' if len(texts) == 1 else f'{len(lost)} of {len(texts)} prompts'}: "
                f"{', '.join(shown)}{', …' * (len(lost) > _LISTED)}",
                stacklevel=2,
            )
        return torch.from_numpy(rows)

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        **refused: Any,
    ) -> TextEncoding:
        """Encode texts as transformers' tokenizer does, with the same arguments and results.

        Args:
            text: a text, or a list of b texts.
            text_pair: must be None: CLIP reads one text.
            add_special_tokens: put the start token before each text and the end token after it.
            padding: True or "longest" fills texts up to the longest one, "max_length" up to `max_length` or, without
                it, to `model_max_length`; False or "do_not_pad" leaves them as they are.
            truncation: True, "longest_first" or "only_first" cuts texts to `max_length` or, without it, to
                `model_max_length`; False or "do_not_truncate" leaves them as they are. None does so too, unless
                `max_length` is given and there is no padding.
            max_length: a number of tokens, the special ones among them.
            pad_to_multiple_of: fill texts up to a multiple of so many tokens.
            padding_side: "right" or "left".
            return_tensors: "pt" for tensors (b s) int64, "np" for arrays, None for lists.
            return_token_type_ids: also give `token_type_ids`, which are zeros.
            return_attention_mask: False leaves out `attention_mask`, which is 1 for a text's tokens and 0 for padding.
            return_special_tokens_mask: also give `special_tokens_mask`, which is 1 for what is no part of the text.
            return_offsets_mapping: also give `offset_mapping`, the first letter of each token and the one after it.
            return_length: also give `length`, the number of tokens of each text with all padding.
            verbose: without effect.
            refused: arguments of transformers that are not implemented: `text_target`, `text_pair_target`, `stride`,
                `is_split_into_words` and `return_overflowing_tokens`. They may have the values that ask for nothing.

        Raises:
            TypeError: a text is no str, or an argument is unknown or not implemented.
            ValueError: a text is no valid Unicode, or has more than 262,144 characters and is not to be cut; an
                argument has a value that is not known; or tensors are asked for though the texts differ in length.
        """
        if isinstance(text_pair, int):
            raise TypeError(
                "a length is given as max_length=; for a padded tensor of ids, call tokenizer.ids(texts, n)"
            )
        refuse_arguments(text_pair=text_pair, **refused)
        is_one = isinstance(text, str)
        texts = [text] if isinstance(text, str) else list(text)
        if truncation is None and max_length is not None and padding is False:
            truncation = True
        cuts = choice(truncation or False, "truncation", {True: True, "longest_first": True, "only_first": True}, KEEP)
        pads = choice(padding, "padding", {True: "longest", "longest": "longest", "max_length": "max_length"}, KEEP)
        limit = (self.model_max_length if max_length is None else max_length) if cuts else None
        if cuts and pads and pad_to_multiple_of and limit is not None and limit % pad_to_multiple_of:
            raise ValueError(
                f"texts cut to max_length={limit} are no multiple of pad_to_multiple_of={pad_to_multiple_of}"
            )
        rows: dict[str, list[Any]] = {
            name: []
            for name in ("input_ids", "token_type_ids", "attention_mask", "special_tokens_mask", "offset_mapping")
        }
        for each in texts:
            for name, row in self._row(each, add_special_tokens, limit).items():
                rows[name].append(row)
        wanted = {
            "token_type_ids": return_token_type_ids,
            "attention_mask": return_attention_mask in (None, True),
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
        }
        encoding = TextEncoding({name: row for name, row in rows.items() if wanted.get(name, True)})
        width = width_of(rows["input_ids"], pads, self.model_max_length if max_length is None else max_length)
        self._fill(encoding, width, pad_to_multiple_of if pads else None, padding_side)
        if return_length:
            encoding["length"] = [len(row) for row in encoding.input_ids]
        if return_tensors is None and is_one:
            return TextEncoding({name: rows if name == "length" else rows[0] for name, rows in encoding.items()})
        return as_tensors(encoding, return_tensors)

    encode_plus = batch_encode_plus = __call__  # their older names

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> TextEncoding:
        """Fill texts that have been encoded up to one length.

        Args:
            encoded_inputs: a dict with the lists of ids of several texts under "input_ids", or of one text; or a list
                of such dicts, of one text each. It may have an "attention_mask".

        The rest is as in a call.

        Raises:
            ValueError: there are no "input_ids", or an argument has a value that is not known.
        """
        if not isinstance(encoded_inputs, Mapping):
            names = encoded_inputs[0].keys() if encoded_inputs else ["input_ids"]
            encoded_inputs = {name: [each[name] for each in encoded_inputs] for name in names}
        if "input_ids" not in encoded_inputs:
            raise ValueError(f"there are no input_ids to fill up, but {', '.join(map(str, encoded_inputs))}")
        lists = {name: id_lists(value) for name, value in encoded_inputs.items()}
        is_one = not (lists["input_ids"] and isinstance(lists["input_ids"][0], list))
        encoding = TextEncoding({name: [value] if is_one else value for name, value in lists.items()})
        if return_attention_mask in (None, True) and "attention_mask" not in encoding:
            encoding["attention_mask"] = [[1] * len(row) for row in encoding.input_ids]
        if return_attention_mask is False:
            encoding.pop("attention_mask", None)
        pads = choice(padding, "padding", {True: "longest", "longest": "longest", "max_length": "max_length"}, KEEP)
        width = width_of(encoding.input_ids, pads, self.model_max_length if max_length is None else max_length)
        self._fill(encoding, width, pad_to_multiple_of if pads else None, padding_side)
        if is_one and return_tensors is None:
            return TextEncoding({name: rows[0] for name, rows in encoding.items()})
        return as_tensors(encoding, return_tensors)

    def encode(self, text: str, text_pair: None = None, *, add_special_tokens: bool = True, **options: Any) -> Any:
        """The token ids of one text, with start and end token and without padding.

        Args:
            options: as in a call; with `return_tensors` the result is a tensor or an array (1 s).

        Raises:
            TypeError, ValueError: as in a call.
        """
        if not isinstance(text, str):
            raise TypeError(f"a prompt must be a str, not {type(text).__name__}")
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options).input_ids

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """The text of token ids, as it was normalised: in small letters, with a blank between pieces.

        Args:
            token_ids: one id, or a list, array or tensor (s,). Of several texts, (b s), the result is a list.
            skip_special_tokens: leave out start, end and padding tokens.
            clean_up_tokenization_spaces: without effect.
        """
        listed = id_lists(token_ids)
        if listed and isinstance(listed[0], list):
            return [self.decode(row, skip_special_tokens) for row in listed]
        text: str = self._tokenizer.decode(listed, skip_special_tokens=skip_special_tokens)
        return text.replace(WORD_END, " ").strip()

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """The texts of several lists of token ids; see `decode`."""
        return [self.decode(row, skip_special_tokens) for row in id_lists(sequences)]

    def tokenize(self, text: str, pair: None = None, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text, as words."""
        refuse_arguments(pair=pair)
        tokens: list[str] = self._encode(text).tokens
        return [self.bos_token, *tokens, self.eos_token] if add_special_tokens else tokens

    # --- the vocabulary ----------------------------------------------------------------------------------------------

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or those of a list of them; that of the `unk_token` for what is no token."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        index: int | None = self._tokenizer.token_to_id(tokens)
        return self.unk_token_id if index is None else index

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or those of a list of them; None for what is no id."""
        if np.ndim(ids) == 0:
            return self._tokenizer.id_to_token(int(ids))
        left = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._tokenizer.id_to_token(int(index)) for index in ids if int(index) not in left]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens."""
        text: str = self.decode(self.convert_tokens_to_ids(tokens))
        return text

    def get_vocab(self) -> dict[str, int]:
        """The id of every token, with the added ones."""
        vocab: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocab

    @property
    def vocab(self) -> dict[str, int]:
        """The id of every token, with the added ones."""
        return self.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """The ids of the tokens that are found in a text before it is cut into pieces."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: index for index, token in sorted(added.items())}

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        return self.get_added_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens that are found in a text before it is cut into pieces, by their ids."""
        return dict(sorted(self._tokenizer.get_added_tokens_decoder().items()))

    @property
    def vocab_size(self) -> int:
        """How many tokens there are without the added ones; `len` counts all."""
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=False)
        return size

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens by what they are for."""
        return dict(self.special_tokens)

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens, each once."""
        return list(dict.fromkeys([*self.special_tokens.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of the special tokens."""
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The tokenizer of the library `tokenizers`. It knows no start token, end token or padding."""
        return self._tokenizer

    @property
    def max_len_single_sentence(self) -> int:
        """How many tokens a text may have beside the start and the end token."""
        return self.model_max_length - 2

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a text gets."""
        refuse_arguments(pair=pair)
        return 2

    def build_inputs_with_special_tokens(self, token_ids_0: Sequence[int], token_ids_1: None = None) -> list[int]:
        """The ids of a text between a start and an end token."""
        refuse_arguments(token_ids_1=token_ids_1)
        return [self.bos_token_id, *token_ids_0, self.eos_token_id]

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Add tokens, as textual inversion does. They get the next free ids, and are found in texts whole.

        The text encoder needs a vector for each of them, as `load_textual_inversion` of a pipeline gives it. Threads
        that use the tokenizer at that time find all of the new tokens or none.

        Args:
            new_tokens: one, or several. Those that are there already are left as they are.
            special_tokens: whether decoding may leave them out.

        Returns:
            How many were new.
        """
        given = [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else list(new_tokens)
        known = self.get_vocab()
        tokens = [
            AddedToken(token, normalized=not special_tokens, special=special_tokens)
            if isinstance(token, str)
            else token
            for token in given
        ]
        new = list({token.content: token for token in tokens if token.content not in known}.values())
        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())  # the present one may be at work in other threads
        tokenizer.add_tokens(new)
        self._tokenizer = tokenizer
        if special_tokens:
            self.extra_special_tokens += [token.content for token in new]
        return len(new)

    def remove_tokens(self, tokens: Sequence[str]) -> list[int]:
        """Remove tokens that were added and are not special. The ids of those after them become smaller.

        Threads that use the tokenizer at that time still find all of them or none.

        Args:
            tokens: which; what is no such token is passed over.

        Returns:
            The ids that they had, in rising order: the rows that the text encoder's table of vectors is to lose.
        """
        added = self.added_tokens_decoder
        gone = [
            index
            for index, token in added.items()
            if token.content in tokens and not token.special and index >= self.vocab_size
        ]
        state = json.loads(self._tokenizer.to_str())
        left = [token for token in state["added_tokens"] if token["id"] not in gone]
        for token in left:
            token["id"] -= sum(index < token["id"] for index in gone)
        self._tokenizer = Tokenizer.from_str(json.dumps({**state, "added_tokens": left}))
        return gone

    def __len__(self) -> int:
        """How many tokens there are."""
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    def _row(self, text: str, add_special_tokens: bool, limit: int | None) -> dict[str, list[Any]]:
        """All that a call may be asked for of one text, cut to `limit` tokens."""
        frame = int(add_special_tokens)
        if limit is not None and limit < max(2 * frame, 1):
            raise ValueError(f"max_length must be {max(2 * frame, 1)} or more, not {limit}")
        end = None if limit is None else limit - 2 * frame
        encoding = self._encode(text, end)
        ids, offsets = encoding.ids[:end], encoding.offsets[:end]
        return {
            "input_ids": [self.bos_token_id] * frame + ids + [self.eos_token_id] * frame,
            "token_type_ids": [0] * (len(ids) + 2 * frame),
            "attention_mask": [1] * (len(ids) + 2 * frame),
            "special_tokens_mask": [1] * frame + [0] * len(ids) + [1] * frame,
            "offset_mapping": [(0, 0)] * frame + offsets + [(0, 0)] * frame,
        }

    def _fill(self, encoding: TextEncoding, width: int | None, multiple: int | None, side: str | None) -> None:
        """Fill the rows of an encoding up to a width; None leaves them as they are."""
        if side not in (None, "right", "left"):
            raise ValueError(f"padding_side={side!r:.50} is neither 'right' nor 'left'")
        if width is None:
            return
        if multiple:
            width = -(-width // multiple) * multiple
        filling = {"input_ids": self.pad_token_id, "special_tokens_mask": 1, "offset_mapping": (0, 0)}
        for name, rows in encoding.items():
            value = filling.get(name, 0)
            for number, row in enumerate(rows):
                missing = [value] * (width - len(row))
                rows[number] = [*missing, *row] if side == "left" else [*row, *missing]

    def _encode(self, text: str, limit: int | None = None) -> Any:
        """What the library makes of a text: `ids` without start and end token, and where each is in the text.

        Args:
            text: the text, of which a long one may be read in part.
            limit: how many tokens the caller needs, and whether there is one more; None for all.
        """
        if not isinstance(text, str):
            raise TypeError(f"a prompt must be a str, not {type(text).__name__}")
        try:
            if len(text) <= _READ[0]:
                return self._tokenizer.encode(text, add_special_tokens=False)
            text.encode()  # the part that is not read has to be valid as well
            return self._encode_long(text, limit)
        except (TypeError, UnicodeEncodeError) as error:
            raise ValueError(
                f"the prompt {text[:100]!r} is no valid Unicode: it has lone surrogates, which must be removed"
            ) from error

    def _encode_long(self, text: str, limit: int | None) -> Any:
        """`_encode` of a text that is only read until there are tokens enough."""
        longest = max((len(token.content) for token in self._tokenizer.get_added_tokens_decoder().values()), default=0)
        for length in _READ if limit is not None else ():
            if length >= len(text):
                break
            end = cut_at(text, length, 2 * length)
            if end is None:
                if length < _READ[-1]:
                    continue
                end = length  # one word of so many letters: where it ends does not change how it begins
            encoding = self._tokenizer.encode(text[:end], add_special_tokens=False)
            # An added token may go on behind the place of the cut; those before it are what they are in the whole text.
            if limit is not None and len(encoding.ids) > limit and encoding.offsets[limit][1] <= end - longest:
                return encoding
        if len(text) > _READ[-1]:
            instead = "give truncation=True" if limit is None else f"no {limit} tokens are in the first of them"
            raise ValueError(f"the text has {len(text)} characters, over {_READ[-1]}: {instead}")
        return self._tokenizer.encode(text, add_special_tokens=False)

    # --- files -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], subfolder: str | None = None, **options: Any
    ) -> Self:
        """Load from a folder with tokenizer.json, or with vocab.json and merges.txt.

        Args:
            pretrained_model_name_or_path: a folder, a bundled model or a hub id.
            subfolder: the folder inside it, usually "tokenizer".
            options: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download` for the hub. Any other is an
                argument of the constructor and overrides what the files say.

        Raises:
            CheckpointError: a file is missing, is broken or belongs to another kind of tokenizer.
        """
        repository = Repository.open(pretrained_model_name_or_path, options)
        return cls.load(repository, subfolder, **options)

    @classmethod
    def load(
        cls,
        repository: Repository,
        subfolder: str | None,
        dtype: Any = None,
        variant: str | None = None,
        **overrides: Any,
    ) -> Self:
        """`from_pretrained` for a repository that is already open.

        `dtype` and `variant` have no effect: they are there because a pipeline loads all its components with them.
        """
        path = repository.find("tokenizer.json", subfolder)
        listed: dict[str, Any] = {}
        if path is not None:
            listed = read_json(path)
            vocab, merges = read_model(listed, path)
        else:
            path, merges_path = (repository.find(name, subfolder) for name in ("vocab.json", "merges.txt"))
            if path is None or merges_path is None:
                where = "/".join(part for part in (str(repository), subfolder) if part)
                raise CheckpointError(f"{where} has neither tokenizer.json nor vocab.json and merges.txt")
            vocab, merges = read_json(path), read_merges(merges_path)
        try:
            settings = read_settings(repository, subfolder, listed)
            tokenizer = cls(vocab, merges, **{**settings, **overrides})
        except CheckpointError:
            raise
        except (ConfigError, TypeError, ValueError, AttributeError, KeyError) as error:
            why = f"they have no {error}" if isinstance(error, KeyError) else error
            raise CheckpointError(f"{path} and the files beside it make no CLIP tokenizer: {why}") from error
        tokenizer.name_or_path = repository.name
        return tokenizer

    def write(self, folder: Path, saving: Saving | None = None) -> None:
        """Write vocab.json, merges.txt and tokenizer_config.json, which transformers reads too.

        `saving` has no effect, as it is for files of weights.
        """
        model = json.loads(self._tokenizer.to_str())["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        write_text(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False) + "\n")
        write_text(folder / "merges.txt", "\n".join([VERSION, *merges]) + "\n")
        added = self._tokenizer.get_added_tokens_decoder()
        config: dict[str, Any] = {
            "added_tokens_decoder": {str(index): as_dict(token) for index, token in sorted(added.items())},
            "model_max_length": self.model_max_length,
            "tokenizer_class": "CLIPTokenizer",
        }
        write_json(folder / self.config_name, {**config, **self.special_tokens})
