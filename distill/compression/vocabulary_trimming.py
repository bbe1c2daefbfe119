"""Trim the vocabulary: fewer rows in the embedding and in the output head that is tied to it.

A byte-pair tokenizer encodes a text by merging its bytes, applying the earliest merge rule first. The kept tokens are
all single bytes, so that any text can still be written, all tokens that the labels use, and for each of those the
tokens it is merged from. If the old tokenizer encodes a text with kept tokens only, it applied rules of kept tokens
only. The new tokenizer has these rules in the same order, and no other rule competes with them, so it writes the same
tokens.

Tokens that the labels happen not to use are added in the order of the merge rules, since earlier rules join what is
more common, but only if they are spelled with bytes that occur in the labels. All special tokens are kept, except
timestamps beyond the end of the window.

V old vocabulary, K kept tokens, D width.
"""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, WhisperForConditionalGeneration

from distill.compression.context import CompressionContext
from distill.models.cutting import with_weights
from eval.runtimes.model_format import JsonSettings, load_tokenizer
from recipes.core.atomic_files import atomic_write, write_json
from recipes.core.errors import UserError
from recipes.core.whisper_shape import POSITIONS_PER_SECOND
from recipes.schema.compress_section import VocabularyOptions

NewIds = dict[int, int]
"""New id of each kept token by its old id."""


class VocabularyReport(TypedDict):
    """What compression.json holds of the vocabulary, in numbers of tokens."""

    of: int
    """Size of the old vocabulary."""
    tokens: int
    """Size of the new one: text and special tokens."""
    words: int
    """Text tokens."""
    special: int


def trim_vocabulary(
    model: WhisperForConditionalGeneration, options: VocabularyOptions, context: CompressionContext
) -> tuple[WhisperForConditionalGeneration, VocabularyReport]:
    """Return a copy of the model with the embeddings of the kept tokens only, and a report.

    The tokenizer and the generation config in `context.processors` are rewritten. Raises UserError if there are neither
    labels nor transcripts.
    """
    folder, config = context.processors, copy.deepcopy(model.config)
    texts = [text for text in context.texts if text]
    if not texts:
        raise UserError(
            "compress.vocabulary: expected labels or transcripts of training audio, found none in the corpus; "
            "add the section labels, or leave compress.vocabulary out"
        )
    text_ids = select_tokens(folder, texts, options.tokens)
    window_s = config.max_source_positions / POSITIONS_PER_SECOND
    special_ids = _special_tokens(load_tokenizer(folder), window_s, config.eos_token_id)
    kept_K = [*text_ids, *special_ids]
    new_ids = {old: new for new, old in enumerate(kept_K)}
    _rewrite_processors(folder, new_ids)
    weights, name = model.state_dict(), "model.decoder.embed_tokens.weight"
    weights[name] = weights["proj_out.weight"] = weights[name][torch.tensor(kept_K)]
    config.vocab_size = len(kept_K)
    for key, value in config.to_dict().items():
        if (renumbered := _renumber(key, value, new_ids)) != value:
            setattr(config, key, renumbered)
    smaller = with_weights(model, type(model)(config), weights)
    smaller.generation_config = GenerationConfig.from_pretrained(folder)
    return smaller, {
        "of": model.config.vocab_size, "tokens": len(kept_K), "words": len(text_ids), "special": len(special_ids),
    }  # fmt: skip


def select_tokens(folder: Path, texts: Iterable[str], count: int | None = None) -> list[int]:
    """Return the sorted ids of the text tokens to keep: at least all that the texts use, `count` if given.

    Raises UserError if `count` is smaller than that.
    """
    tokenizer, model = load_tokenizer(folder), JsonSettings.read(folder / "tokenizer.json")["model"]
    vocabulary: dict[str, int] = model["vocab"]
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    parts: dict[str, set[str]] = {}  # of each token, the tokens it is merged from, by any rule
    for pair in pairs:
        parts.setdefault("".join(pair), set()).update(pair)
    added = set(tokenizer.get_added_tokens_decoder())
    kept = {token for token, id_ in vocabulary.items() if len(token) == 1 and id_ not in added}
    used = {
        token
        for text in texts
        for spelling in (text.strip(), f" {text.strip()}")
        for token in tokenizer.encode(spelling, add_special_tokens=False).tokens
    }
    characters = set("".join(used))
    for token in used:
        _add_with_parts(token, parts, kept)
    if count is not None and count < len(kept):
        raise UserError(
            f"compress.vocabulary.tokens: expected at least {len(kept)}, all bytes and the tokens of the labels, found "
            f"{count}; null keeps only these"
        )
    for pair in pairs:
        if count is None or len(kept) >= count:
            break
        token = "".join(pair)
        if set(token) <= characters and kept.issuperset(pair):  # the rules of its parts come earlier
            kept.add(token)
    return sorted(vocabulary[token] for token in kept)


def _add_with_parts(token: str, parts: dict[str, set[str]], kept: set[str]) -> None:
    """Add a token to `kept`, and all tokens that it is merged from."""
    if token not in kept:
        kept.add(token)
        for part in parts.get(token, ()):
            _add_with_parts(part, parts, kept)


def _special_tokens(tokenizer: Tokenizer, window_s: float, end_of_text: int) -> list[int]:
    """Return the sorted ids of the end of text and all tokens after it, except timestamps beyond the window."""
    ids = []
    for id_ in range(end_of_text, tokenizer.get_vocab_size()):
        name = (tokenizer.id_to_token(id_) or "").strip("<|>")
        is_timestamp = name.replace(".", "", 1).isdigit()
        if not (is_timestamp and float(name) > window_s):
            ids.append(id_)
    return ids


def _rewrite_processors(folder: Path, new_ids: NewIds) -> None:
    """Rewrite every file of the folder that lists tokens or their ids, for the kept tokens only."""
    path = folder / "tokenizer.json"
    tokenizer = JsonSettings.read(path)
    model = tokenizer["model"]
    model["vocab"] = vocabulary = {token: new_ids[old] for token, old in model["vocab"].items() if old in new_ids}
    model["merges"] = [pair for pair in model["merges"] if _is_kept_rule(pair, vocabulary)]
    tokenizer["added_tokens"] = [
        token | {"id": new_ids[token["id"]]} for token in tokenizer["added_tokens"] if token["id"] in new_ids
    ]
    for token in ((tokenizer.get("post_processor") or {}).get("special_tokens") or {}).values():
        token["ids"] = [new_ids[old] for old in token["ids"]]
    write_json(path, tokenizer)
    for name in ("vocab.json", "added_tokens.json"):
        if (path := folder / name).is_file():
            ids = JsonSettings.read(path)
            write_json(path, {token: new_ids[old] for token, old in ids.items() if old in new_ids})
    if (path := folder / "merges.txt").is_file():
        head, *lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if _is_kept_rule(line.rstrip("\n"), vocabulary)]
        with atomic_write(path) as temporary:
            temporary.write_text("".join([head, *kept]))
    for name in ("generation_config.json", "tokenizer_config.json"):
        if (path := folder / name).is_file():
            settings = JsonSettings.read(path)
            write_json(path, {key: _renumber(key, value, new_ids) for key, value in settings.items()})


def _is_kept_rule(pair: str | Sequence[str], vocabulary: dict[str, int]) -> bool:
    """Return whether a merge rule's two parts and its result are all in the vocabulary."""
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    return {first, second, first + second} <= vocabulary.keys()


def _renumber(key: str, value: Any, new_ids: NewIds) -> Any:
    """Return a setting of a config file with new ids if it holds token ids, without the tokens that are not kept."""
    if key.endswith("_token_id") and isinstance(value, int):
        return new_ids[value]
    if key in ("suppress_tokens", "begin_suppress_tokens") and value:
        return [new_ids[old] for old in value if old in new_ids]
    if key in ("lang_to_id", "task_to_id"):
        return {name: new_ids[old] for name, old in value.items() if old in new_ids}
    if key == "forced_decoder_ids" and value:
        return [[position, new_ids.get(old) if old is not None else None] for position, old in value]
    if key == "added_tokens_decoder":
        return {str(new_ids[int(old)]): token for old, token in value.items() if int(old) in new_ids}
    return value
