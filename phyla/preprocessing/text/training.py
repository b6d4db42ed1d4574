"""New vocabularies for a fast tokenizer's pipeline, learnt from an iterator of texts."""

import json

from tokenizers import Tokenizer, pre_tokenizers, trainers

from phyla.errors import TokenizerFileError

from .tokens import ALL_ROLES, LIST_ROLE, AddedToken

_TRAINERS = {
    "BPE": trainers.BpeTrainer,
    "Unigram": trainers.UnigramTrainer,
    "WordLevel": trainers.WordLevelTrainer,
    "WordPiece": trainers.WordPieceTrainer,
}


def _renamed(tokenizer, special_tokens_map: dict) -> dict:
    """Old text to new text of the special tokens that the map changes."""
    names = {}
    for role, new in special_tokens_map.items():
        old = getattr(tokenizer, role, None)
        if role != LIST_ROLE and old is not None:
            names[old] = str(new)
    return names


def _emptied(model: dict, unk: str | None, kept: list) -> None:
    kind = model["type"]
    model["vocab"] = {} if kind != "Unigram" else []
    if kind == "BPE":
        model["merges"] = []
    if kind == "Unigram" and model.get("unk_id") is not None:
        # The trainer wants its unknown token at the place the file names.
        model["unk_id"] = 0
        model["vocab"] = [[unk or (kept[0] if kept else "<unk>"), 0.0]]
    if kind in ("WordLevel", "WordPiece") and model.get("unk_token") is not None:
        model["unk_token"] = unk or model["unk_token"]


def trained(
    tokenizer, texts, vocab_size: int, length, new_special_tokens, special_tokens_map, settings: dict
):
    """A tokenizer like `tokenizer` with a new vocabulary (see `train_new_from_iterator`)."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = data["model"]["type"]
    if kind not in _TRAINERS:
        raise TokenizerFileError(
            f"a tokenizer of kind {kind!r} cannot be trained; kinds are {sorted(_TRAINERS)}"
        )
    names = _renamed(tokenizer, special_tokens_map or {})
    added = data.pop("added_tokens")
    data["added_tokens"] = []
    post = data.get("post_processor")
    data["post_processor"] = None
    unk = names.get(tokenizer.unk_token, tokenizer.unk_token)
    specials = []
    for state in added:
        if state["special"] or kind != "Unigram":
            state = {key: value for key, value in state.items() if key != "id"}
            state["content"] = names.get(state["content"], state["content"])
            specials.append(AddedToken(**state))
    specials += [
        t if isinstance(t, AddedToken) else AddedToken(t, special=True) for t in new_special_tokens or ()
    ]
    if kind == "Unigram" and data["model"].get("unk_id") is not None and unk is None:
        unk = tokenizer.backend_tokenizer.id_to_token(data["model"]["unk_id"])
    _emptied(data["model"], unk, [str(t) for t in specials])
    backend = Tokenizer.from_str(json.dumps(data))
    if kind == "BPE":
        for key in ("continuing_subword_prefix", "end_of_word_suffix"):
            if data["model"].get(key):
                settings.setdefault(key, data["model"][key])
        if "ByteLevel" in json.dumps(data.get("pre_tokenizer")):
            settings.setdefault("initial_alphabet", pre_tokenizers.ByteLevel.alphabet())
    elif kind == "Unigram" and unk is not None:
        settings.setdefault("unk_token", unk)
    trainer = _TRAINERS[kind](vocab_size=vocab_size, special_tokens=specials, show_progress=False, **settings)
    backend.train_from_iterator(texts, trainer, length=length)
    if post is not None:
        data = json.loads(backend.to_str())
        data["post_processor"] = _with_ids(post, names, backend)
        backend = Tokenizer.from_str(json.dumps(data))
    options = dict(tokenizer.init_kwargs)
    for role in ALL_ROLES[:-1]:
        value = getattr(tokenizer, f"_{role}", None) or tokenizer._special_tokens_map.get(role)
        if value is not None:
            options[role] = names.get(str(value), value)
    options[LIST_ROLE] = [*tokenizer.additional_special_tokens, *map(str, new_special_tokens or ())] or None
    options.pop("added_tokens_decoder", None)
    return type(tokenizer)(tokenizer_object=backend, **options)


def _with_ids(post: dict, names: dict, backend: Tokenizer) -> dict:
    """The post-processor with the new texts and ids of its special tokens."""
    if post["type"] == "Sequence":
        return {**post, "processors": [_with_ids(part, names, backend) for part in post["processors"]]}
    if post["type"] == "TemplateProcessing":

        def place(part):
            token = part.get("SpecialToken")
            return {"SpecialToken": {**token, "id": names.get(token["id"], token["id"])}} if token else part

        tokens = {}
        for entry in post["special_tokens"].values():
            texts = [names.get(text, text) for text in entry["tokens"]]
            key = names.get(entry["id"], entry["id"])
            tokens[key] = {"id": key, "ids": [backend.token_to_id(text) for text in texts], "tokens": texts}
        single, pair = ([place(part) for part in post[key]] for key in ("single", "pair"))
        return {**post, "single": single, "pair": pair, "special_tokens": tokens}
    changed = dict(post)
    for key in ("sep", "cls"):
        if key in post:
            text = names.get(post[key][0], post[key][0])
            changed[key] = [text, backend.token_to_id(text)]
    return changed
