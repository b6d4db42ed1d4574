"""A request that is to stand in pages, from what was asked: its row, or rows that go on together."""

from functools import partial
from typing import Any

from phyla.errors import GenerationError
from phyla.generation.beams import beam_settings
from phyla.generation.engine.asking import Asked, draft_of, is_whole, negative_ids, read_request
from phyla.generation.engine.contrast import Contrast
from phyla.generation.engine.picking import check_settings, generator_of, prepare_row
from phyla.generation.engine.request import Handle, Row
from phyla.generation.engine.setups import Apart, Setup, check_paged, with_setup
from phyla.generation.engine.teams import Beams, guide
from phyla.generation.modes import GenerationMode
from phyla.generation.plan import build_criteria, new_token_limit, steps_of, told_ends, told_limit
from phyla.generation.prompt import Prompt

_OF_STATES = (GenerationMode.DOLA_GENERATION, GenerationMode.CONTRASTIVE_SEARCH)


def paged_request(engine: Any, asked: Asked) -> Handle:
    """The request, with its rows in `rows` and `shadows`; the engine does not know it yet.

    Raises Apart where it needs a call of its own, else what `generate` raises.
    """
    model, config = engine.model, asked.config
    mode = check_settings(config, asked.drafted, asked.guided)

    def read() -> Prompt:
        check_paged(model)
        return read_request(model, asked, engine.context)

    setup, prompt = with_setup(model, asked.adapter_names, read)
    most = new_token_limit(config, prompt, engine.context, asked.has_length())
    criteria = steps_of("stopping_criteria", asked.stopping_criteria)
    limit = told_limit(criteria, most, prompt, engine.context)
    handle, row = _begun(engine, prompt, asked, limit, setup)
    if told_ends(criteria):
        handle.ends = set()
    handle.mode = mode
    if row.given is not None and mode in _OF_STATES:
        raise Apart("states of a prompt that is read as a whole are not kept")
    handle.criteria = build_criteria(config, criteria, asked.tokenizer)
    if config.do_sample:
        row.generator = generator_of(asked.seed, model.device)
    handle.prepare = partial(
        prepare_row, model, custom=steps_of("logits_processor", asked.logits_processor), most=most,
        allowed=asked.allowed, grammar=asked.grammar, tokenizer=asked.tokenizer,
    )  # fmt: skip
    handle.prepare(row)
    row.draft = draft_of(engine, asked)
    if row.draft is None and mode == GenerationMode.ASSISTED_GENERATION:
        raise Apart("pages have no such draft")
    negative = negative_ids(config, row.ids, asked.negative_prompt_ids, engine.encoder)
    beams = beam_settings(config)
    if negative is not None:
        check_room(engine, len(negative), limit)
    if beams is not None and limit:
        Beams(row, beams, model.device)
        handle.shadows.append(row)
    elif mode == GenerationMode.CONTRASTIVE_SEARCH and limit:
        handle.rows.append(Contrast(row, config.penalty_alpha, config.top_k).text)
        handle.shadows.append(row)
    else:
        handle.rows.append(row)
    if negative is not None:
        guide(handle, row, negative, config.guidance_scale)
    return handle


def _begun(engine: Any, read: Prompt, asked: Asked, limit: int, setup: Setup) -> tuple[Handle, Row]:
    """A request and its row, which nobody knows yet."""
    ids: list[int] = read.ids[0].tolist()
    check_room(engine, read.positions, limit)
    handle = Handle(engine, engine.submitted, ids, asked.config, limit, setup)
    if engine.encoder:
        handle.memory = read.steady["encoder_outputs"].last_hidden_state
        handle.source = None if read.source_ids is None else read.source_ids[0].tolist()
    else:  # a decoder alone, on the states of an encoder that the caller has
        handle.memory = read.first.get("encoder_hidden_states")
    hidden = read.positions - len(ids)
    row = Row(handle, 0, [0] * hidden + ids, read.positions, hidden=hidden)
    row.text.memory = handle.memory
    if is_whole(read):
        row.given, handle.asked = read, asked
    return handle, row


def check_room(engine: Any, length: int, limit: int) -> None:
    """Raise GenerationError where the memory is too small for a text."""
    check_pages(engine, pages_of(engine, length + limit), f"{length} ids of the prompt and {limit} new ones")


def pages_of(engine: Any, length: int) -> int:
    """How many pages a text of that length has at once, at most."""
    return engine.scheduler.span(length) if engine.scheduler.paged else 0


def check_pages(engine: Any, needed: int, what: str) -> None:
    """Raise GenerationError where the memory has fewer pages."""
    if needed > engine.pool.count:
        raise GenerationError(
            f"the memory has {engine.pool.count} pages of {engine.pool.size} positions, but {what} need "
            f"{needed}: raise max_memory or ask for fewer tokens"
        )
