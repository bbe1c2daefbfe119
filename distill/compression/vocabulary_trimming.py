"""Fewer tokens: embedding and tied head shrink, and every text that the kept tokens spell is spelled as before.

A byte-pair tokenizer writes a text by merging its bytes, the earliest rule first. Kept are all single bytes, so that
any text can still be written, all tokens that the labels use, and with every token those it is merged from. Where the
old tokenizer writes a text with kept tokens alone, it applied rules of kept tokens alone; these stand in the same order
in the new one, and no other competes: it writes the same tokens.

What the labels did not happen to use is added by rank, since earlier merges join what is more common, as long as it is
spelled with the labels' own bytes. Special tokens all stay, timestamps up to the end of the window.

V old vocabulary, K kept tokens, D width.
"""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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

Ids = dict[int, int]
"""Old id of each kept token to its new one."""


def trim_vocabulary(
    model: WhisperForConditionalGeneration, section: VocabularyOptions, material: CompressionContext
) -> tuple[WhisperForConditionalGeneration, dict[str, Any]]:
    """A copy of the model with the kept tokens' embeddings alone; its tokenizer and generation config are rewritten."""
    folder, config = material.processors, copy.deepcopy(model.config)
    texts = [text for text in material.texts if text]
    if not texts:
        raise UserError("compress.vocabulary: needs labels or transcripts of training audio, found none in the corpus")
    words = select_tokens(folder, texts, section.tokens)
    special = _special(load_tokenizer(folder), config.max_source_positions / POSITIONS_PER_SECOND, config.eos_token_id)
    kept_K = [*words, *special]
    ids = {old: new for new, old in enumerate(kept_K)}
    _rewrite(folder, ids)
    weights, name = model.state_dict(), "model.decoder.embed_tokens.weight"
    weights[name] = weights["proj_out.weight"] = weights[name][torch.tensor(kept_K)]
    config.vocab_size = len(kept_K)
    for key, value in config.to_dict().items():
        if (moved := _moved(key, value, ids)) != value:
            setattr(config, key, moved)
    made = with_weights(model, type(model)(config), weights)
    made.generation_config = GenerationConfig.from_pretrained(folder)
    return made, {"of": model.config.vocab_size, "tokens": len(kept_K), "words": len(words), "special": len(special)}


def select_tokens(folder: Path, texts: Iterable[str], count: int | None = None) -> list[int]:
    """Ids of the text tokens to keep, rising: at least all that the texts use, `count` where given.

    Raises UserError where that is less.
    """
    tokenizer, model = load_tokenizer(folder), JsonSettings.read(folder / "tokenizer.json")["model"]
    vocabulary: dict[str, int] = model["vocab"]
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    parts: dict[str, set[str]] = {}  # of a token, over all rules that make it
    for pair in pairs:
        parts.setdefault("".join(pair), set()).update(pair)
    added = set(tokenizer.get_added_tokens_decoder())
    kept = {token for token, id_ in vocabulary.items() if len(token) == 1 and id_ not in added}
    used = {
        token
        for text in texts
        for written in (text.strip(), f" {text.strip()}")
        for token in tokenizer.encode(written, add_special_tokens=False).tokens
    }
    spelling = set("".join(used))
    for token in used:
        _with_parts(token, parts, kept)
    if count is not None and count < len(kept):
        raise UserError(
            f"compress.vocabulary.tokens: expected at least {len(kept)}, all bytes and the tokens of the labels, found "
            f"{count}; null keeps just these"
        )
    for pair in pairs:
        if count is None or len(kept) >= count:
            break
        token = "".join(pair)
        if set(token) <= spelling and kept.issuperset(pair):  # a rank's parts are of earlier ranks
            kept.add(token)
    return sorted(vocabulary[token] for token in kept)


def _with_parts(token: str, parts: dict[str, set[str]], kept: set[str]) -> None:
    if token not in kept:
        kept.add(token)
        for part in parts.get(token, ()):
            _with_parts(part, parts, kept)


def _special(tokenizer: Tokenizer, seconds: float, end: int) -> list[int]:
    """Ids from the end of text on, rising, without the timestamps beyond the window."""
    found = []
    for id_ in range(end, tokenizer.get_vocab_size()):
        stamp = (tokenizer.id_to_token(id_) or "").strip("<|>")
        if not (stamp.replace(".", "", 1).isdigit() and float(stamp) > seconds):
            found.append(id_)
    return found


def _rewrite(folder: Path, ids: Ids) -> None:
    """The files of the folder that name tokens, for the kept ones."""
    path = folder / "tokenizer.json"
    tokenizer = JsonSettings.read(path)
    model = tokenizer["model"]
    model["vocab"] = vocabulary = {token: ids[old] for token, old in model["vocab"].items() if old in ids}
    model["merges"] = [pair for pair in model["merges"] if _applies(pair, vocabulary)]
    tokenizer["added_tokens"] = [
        token | {"id": ids[token["id"]]} for token in tokenizer["added_tokens"] if token["id"] in ids
    ]
    for token in ((tokenizer.get("post_processor") or {}).get("special_tokens") or {}).values():
        token["ids"] = [ids[old] for old in token["ids"]]
    write_json(path, tokenizer)
    for name in ("vocab.json", "added_tokens.json"):
        if (path := folder / name).is_file():
            write_json(path, {token: ids[old] for token, old in JsonSettings.read(path).items() if old in ids})
    if (path := folder / "merges.txt").is_file():
        head, *lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if _applies(line.rstrip("\n"), vocabulary)]
        with atomic_write(path) as beside:
            beside.write_text("".join([head, *kept]))
    for name in ("generation_config.json", "tokenizer_config.json"):
        if (path := folder / name).is_file():
            write_json(path, {key: _moved(key, value, ids) for key, value in JsonSettings.read(path).items()})


def _applies(pair: str | Sequence[str], vocabulary: dict[str, int]) -> bool:
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    return {first, second, first + second} <= vocabulary.keys()


def _moved(key: str, value: Any, ids: Ids) -> Any:
    """A setting of config or generation config, in new ids where it speaks of tokens; what is not kept is left out."""
    if key.endswith("_token_id") and isinstance(value, int):
        return ids[value]
    if key in ("suppress_tokens", "begin_suppress_tokens") and value:
        return [ids[old] for old in value if old in ids]
    if key in ("lang_to_id", "task_to_id"):
        return {name: ids[old] for name, old in value.items() if old in ids}
    if key == "forced_decoder_ids" and value:
        return [[place, ids.get(old) if old is not None else None] for place, old in value]
    if key == "added_tokens_decoder":
        return {str(ids[int(old)]): token for old, token in value.items() if int(old) in ids}
    return value
