"""The calls of models that find passages, and of those that write with what was found."""

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks.cache import Cache
from phyla.errors import ArgumentError, ConfigError
from phyla.model import PreTrainedModel
from phyla.outputs import PassagesOutput
from phyla.registry import model_class
from phyla.skeletons.base import IdTensor, finish, flag
from phyla.skeletons.text import TextModel

logger = logging.getLogger("phyla")


class VectorModel(TextModel):
    """Token ids to one vector a text; without a mask, padding is told from the ids."""

    def forward(  # type: ignore[override]
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Vectors (B, E) of input_ids (B, S)."""
        padding = self.config.pad_token_id
        if attention_mask is None and input_ids is not None and padding is not None:
            attention_mask = input_ids != padding
        return super().forward(
            input_ids, attention_mask, token_type_ids, inputs_embeds=inputs_embeds,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )  # fmt: skip


class GroupedCache(Cache):
    """A cache whose rows go in groups: each of the caller's rows is `group` of its own, one a passage."""

    def __init__(self, slots: list[Any], rows: int, group: int) -> None:
        super().__init__(slots, rows * group)
        self.group = group

    def reorder(self, index: Tensor) -> None:
        """Keep the groups `index`, in that order."""
        inside = torch.arange(self.group, device=index.device)
        super().reorder((index[:, None] * self.group + inside).flatten())

    def repeat(self, times: int) -> None:
        """Each group `times` times, side by side."""
        self.reorder(torch.arange(self.batch // self.group).repeat_interleave(times))


class RetrievalModel(PreTrainedModel):
    """A question to next-token scores of a generator that reads each retrieved passage with the question.

    `retriever` is called with the question's ids and vectors and gives context_input_ids,
    context_attention_mask (B * passages, K), retrieved_doc_embeds (B, passages, E) and doc_ids. Without one
    the caller gives the passages and their scores.
    """

    retriever: Any = None
    ctx_encoder: nn.Module | None = None

    def __init__(
        self,
        config: Any = None,
        question_encoder: PreTrainedModel | None = None,
        generator: PreTrainedModel | None = None,
        retriever: Any = None,
        **options: Any,
    ) -> None:
        """A model of a configuration with fresh weights, or one of a ready question encoder and generator."""
        if question_encoder is not None and generator is not None:
            nn.Module.__init__(self)
            if config is None:
                kind: Any = self.config_class
                config = kind.from_question_encoder_generator_configs(
                    question_encoder.config, generator.config, **options
                )
            self._assemble(config)
            self.backbone.question_encoder, self.backbone.generator = question_encoder, generator
            config.question_encoder, config.generator = question_encoder.config, generator.config
        elif config is None:
            raise ArgumentError("pass a configuration, or both a question_encoder and a generator")
        else:
            super().__init__(config, **options)
        self.retriever = retriever

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, retriever: Any = None, **options: Any) -> Any:
        """Load a checkpoint; `retriever` serves its calls."""
        made = super().from_pretrained(source, *args, **options)  # type: ignore[misc]
        (made[0] if isinstance(made, tuple) else made).retriever = retriever
        return made

    @classmethod
    def from_pretrained_question_encoder_generator(
        cls,
        question_encoder_pretrained_model_name_or_path: str | os.PathLike | None = None,
        generator_pretrained_model_name_or_path: str | os.PathLike | None = None,
        retriever: Any = None,
        **options: Any,
    ) -> "RetrievalModel":
        """Join two checkpoints.

        Options that begin with `question_encoder_` or `generator_` are those of the part's `from_pretrained`
        (or `generator_model`, a ready model); others are keys of the joint configuration.
        """
        from phyla.checkpoints.configs import load_config

        sources = {
            "question_encoder": (question_encoder_pretrained_model_name_or_path, "base-model"),
            "generator": (generator_pretrained_model_name_or_path, "seq2seq-lm"),
        }
        ready: dict[str, PreTrainedModel] = {}
        for name, (source, task) in sources.items():
            own = {
                k.removeprefix(f"{name}_"): options.pop(k) for k in list(options) if k.startswith(f"{name}_")
            }
            ready[name] = own.pop("model", None)
            if ready[name] is None:
                if source is None:
                    raise ArgumentError(f"pass {name}_pretrained_model_name_or_path or {name}_model")
                config = own.pop("config", None) or load_config(source)
                kind: Any = model_class(config.model_type, task, config.architectures)
                ready[name] = kind.from_pretrained(source, config=config, **own)
        config = options.pop("config", None)
        return cls(config, retriever=retriever, **ready, **options).eval()

    def set_retriever(self, retriever: Any) -> None:
        """Let `retriever` serve calls without passages."""
        self.retriever = retriever

    def set_context_encoder_for_training(self, ctx_encoder: PreTrainedModel) -> None:
        """Train the passages' encoder too: scores come from its vectors of the retrieved texts."""
        self.ctx_encoder = ctx_encoder

    @property
    def question_encoder(self) -> PreTrainedModel:
        """The whole question encoder."""
        return self.backbone.question_encoder

    @property
    def generator(self) -> PreTrainedModel:
        """The whole generator."""
        return self.backbone.generator

    @property
    def is_encoder_decoder(self) -> bool:
        return True

    def get_input_embeddings(self) -> nn.Module:
        """The generator's token table."""
        return self.generator.get_input_embeddings()

    def can_generate(self) -> bool:
        """Whether the class writes, or only scores."""
        return self.head_spec.task != "base-model"

    def passages(self, count: int | None) -> int:
        """Passages for each question: the caller's choice, or the configuration's."""
        return self.config.n_docs if count is None else count

    def retrieve(self, ids: Tensor, mask: Tensor | None, count: int) -> tuple[dict[str, Any], Any]:
        """What the retriever finds for questions (B, S), scored, and the question encoder's output."""
        if self.retriever is None:
            raise ArgumentError(
                "pass context_input_ids, context_attention_mask and doc_scores, or set_retriever(...)"
            )
        asked = self.question_encoder(ids, attention_mask=mask, return_dict=True)
        question = asked[0]  # (B, E)
        found = self.retriever(
            ids, question.detach().float().cpu().numpy(), prefix=self.generator.config.prefix, n_docs=count,
            return_tensors="pt",
        )  # fmt: skip
        found = {name: torch.as_tensor(value).to(ids.device) for name, value in found.items()}
        vectors = found["retrieved_doc_embeds"].to(question)
        if self.ctx_encoder is not None:
            texts = self.ctx_encoder(
                found["tokenized_doc_ids"], attention_mask=found["tokenized_doc_attention_mask"],
                return_dict=True,
            )  # fmt: skip
            vectors = texts.pooler_output.view(-1, count, question.shape[1])
        scores = torch.einsum("be,bne->bn", question, vectors)
        return {**found, "retrieved_doc_embeds": vectors, "doc_scores": scores}, asked

    def found(self, ids: Tensor | None, mask: Tensor | None, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and mask (B * count, K) of questions with the passages found for them, and their scores."""
        if ids is None:
            raise ArgumentError("pass input_ids or context_input_ids")
        found, _ = self.retrieve(ids, mask, count)
        return found["context_input_ids"], found["context_attention_mask"], found["doc_scores"]

    def read(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        encoder_outputs: Any,
        decoder_input_ids: Tensor | None,
        decoder_attention_mask: Tensor | None,
        past_key_values: Any,
        context: dict[str, Tensor | None],
        use_cache: bool | None,
        flags: dict[str, bool | None],
        output_retrieved: bool | None,
        count: int,
    ) -> dict[str, Any]:
        """The fields of an output: the generator's scores for each passage of each question."""
        asked = None
        found: dict[str, Any] = dict(context)
        if isinstance(encoder_outputs, PassagesOutput):
            found["doc_scores"] = encoder_outputs.doc_scores
            found["context_attention_mask"] = encoder_outputs["attention_mask"].flatten(0, 1)
            encoder_outputs = (encoder_outputs["last_hidden_state"].flatten(0, 1),)
        elif encoder_outputs is None and any(value is None for value in context.values()):
            if input_ids is None or self.retriever is None:
                missing = [name for name, value in context.items() if value is None]
                raise ArgumentError(f"pass {', '.join(missing)}, or input_ids and set_retriever(...)")
            found, asked = self.retrieve(input_ids, attention_mask, count)
        scores = found["doc_scores"]
        if scores is None or scores.dim() != 2 or scores.shape[1] % count:
            shape = None if scores is None else tuple(scores.shape)
            raise ArgumentError(f"doc_scores must be (questions, {count}) for n_docs={count}, but is {shape}")
        ids, mask = (
            None if given is None else given.repeat_interleave(count, 0)
            for given in (decoder_input_ids, decoder_attention_mask)
        )
        out = self.generator(
            input_ids=None if encoder_outputs is not None else found["context_input_ids"],
            attention_mask=found["context_attention_mask"], encoder_outputs=encoder_outputs,
            decoder_input_ids=ids, decoder_attention_mask=mask, past_key_values=past_key_values,
            use_cache=flag(use_cache, self.config.use_cache), return_dict=True, **flags,
        )  # fmt: skip
        fields = {
            "logits": out.logits,
            "doc_scores": scores,
            "past_key_values": out.past_key_values,
            "generator_enc_last_hidden_state": out.encoder_last_hidden_state,
            "generator_enc_hidden_states": out.encoder_hidden_states,
            "generator_enc_attentions": out.encoder_attentions,
            "generator_dec_hidden_states": out.decoder_hidden_states,
            "generator_dec_attentions": out.decoder_attentions,
            "generator_cross_attentions": out.cross_attentions,
        }
        if asked is not None:
            fields["question_encoder_last_hidden_state"] = asked[0]
            fields["question_enc_hidden_states"] = asked.hidden_states
            fields["question_enc_attentions"] = asked.attentions
            if flag(output_retrieved, self.config.output_retrieved):
                names = ("context_input_ids", "context_attention_mask", "retrieved_doc_embeds")
                fields |= {name: found[name] for name in names} | {"retrieved_doc_ids": found["doc_ids"]}
        return fields

    def forward(
        self,
        input_ids: IdTensor = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        decoder_input_ids: IdTensor = None,
        decoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        doc_scores: Tensor | None = None,
        context_input_ids: IdTensor = None,
        context_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_retrieved: bool | None = None,
        n_docs: int | None = None,
        labels: Tensor | None = None,
        exclude_bos_score: bool | None = None,
        do_marginalize: bool | None = None,
        reduce_loss: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the generator on all passages.

        input_ids (B, S) are questions; context_input_ids (B * n_docs, K) questions and passages, doc_scores
        (B, n_docs) how well these fit; decoder_input_ids (B, T). labels (B, T) are whole targets from their
        first token on, and stand in for decoder_input_ids.
        """
        count = self.passages(n_docs)
        if labels is not None:
            decoder_input_ids = labels if decoder_input_ids is None else decoder_input_ids
            use_cache = False
        context = {
            "context_input_ids": context_input_ids,
            "context_attention_mask": context_attention_mask,
            "doc_scores": doc_scores,
        }
        flags = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        fields = self.read(
            input_ids, attention_mask, encoder_outputs, decoder_input_ids, decoder_attention_mask,
            past_key_values, context, use_cache, flags, output_retrieved, count,
        )  # fmt: skip
        chosen = {
            "exclude_bos_score": exclude_bos_score,
            "do_marginalize": do_marginalize,
            "reduce_loss": reduce_loss,
        }
        options = {name: flag(value, getattr(self.config, name)) for name, value in chosen.items()}
        if isinstance(encoder_outputs, PassagesOutput):
            options["do_marginalize"] = True
        fields |= self.judge(fields, decoder_input_ids, labels, count, options)
        return finish(self, fields, None, return_dict)

    def judge(
        self, fields: dict[str, Any], given: Tensor | None, labels: Tensor | None, count: int,
        options: dict[str, bool],
    ) -> dict[str, Any]:  # fmt: skip
        """The loss, and scores summed over the passages, where a class has them."""
        return {}

    def shifted(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Targets (B, T) one step to the left, and where they are padding."""
        padding = self.config.generator.pad_token_id
        if padding is None:
            raise ConfigError("the generator's config must have a pad_token_id for a loss, but has none")
        target = torch.cat((target[:, 1:], torch.full_like(target[:, :1], padding)), 1)
        return target, target == padding

    def smoothed(self, right: Tensor, every: Tensor, words: int, reduced: bool) -> Tensor:
        """The loss (B), or its sum, from log-probabilities of the target and the sum over all words."""
        right, every = (-right.sum(), -every.sum()) if reduced else (-right, -every)
        share = self.config.label_smoothing
        return (1.0 - share) * right + share / words * every


class PassageSequenceModel(RetrievalModel):
    """Each passage explains the whole text (Lewis et al. 2020, arXiv:2005.11401, section 2.1)."""

    def judge(
        self, fields: dict[str, Any], given: Tensor | None, labels: Tensor | None, count: int,
        options: dict[str, bool],
    ) -> dict[str, Any]:  # fmt: skip
        if labels is None or given is None:
            return {"loss": None}
        loss = self.get_nll(
            fields["logits"], fields["doc_scores"], given, options["reduce_loss"],
            exclude_bos_score=options["exclude_bos_score"], n_docs=count,
        )  # fmt: skip
        return {"loss": loss}

    def get_nll(
        self,
        seq_logits: Tensor,
        doc_scores: Tensor,
        target: Tensor,
        reduce_loss: bool = False,
        exclude_bos_score: bool = False,
        n_docs: int | None = None,
    ) -> Tensor:
        """-log sum over passages of p(passage) p(target | passage), (B) or summed."""
        count = self.passages(n_docs)
        target, padding = self.shifted(target)
        first = self.config.bos_token_id or self.config.generator.bos_token_id
        begins = exclude_bos_score and first is not None and bool((target[:, 0] == first).all())
        words = seq_logits.log_softmax(-1).unflatten(0, (-1, count))  # (B, passages, T, V)
        prior = doc_scores.log_softmax(1)[..., None]  # (B, passages, 1)
        right = words.gather(-1, target[:, None, :, None].expand(-1, count, -1, 1))[..., 0]
        every = words.sum(-1)
        # The passage's own probability goes with the second token, as in the reference.
        second = (torch.arange(target.shape[1], device=target.device) == 1).to(right.dtype)
        right, every = right + second * prior, every + second * prior * words.shape[-1]
        right, every = (x.masked_fill(padding[:, None], 0.0) for x in (right, every))
        if begins:
            right = right[:, :, 1:]
        return self.smoothed(
            right.sum(2).logsumexp(1), every.sum(2).logsumexp(1), words.shape[-1], reduce_loss
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        doc_scores: Tensor | None = None,
        do_deduplication: bool | None = None,
        num_return_sequences: int | None = None,
        num_beams: int | None = None,
        n_docs: int | None = None,
        **settings: Any,
    ) -> Tensor:
        """Texts (B * num_return_sequences, T) of all passages, ranked by their marginal probability."""
        count = self.passages(n_docs)
        if context_input_ids is None:
            context_input_ids, context_attention_mask, doc_scores = self.found(
                input_ids, attention_mask, count
            )
        if context_attention_mask is None or doc_scores is None:
            raise ArgumentError("pass context_attention_mask and doc_scores with context_input_ids")
        beams, wanted = num_beams or 1, num_return_sequences or 1
        best: list[Tensor] = []
        for row, scores in enumerate(doc_scores):
            at = slice(row * count, (row + 1) * count)
            texts = self.generator.generate(
                context_input_ids[at], num_beams=beams, num_return_sequences=beams, **settings
            )
            if flag(do_deduplication, self.config.do_deduplication):
                texts = torch.stack(list({tuple(text.tolist()): text for text in texts}.values()))
            loss = self(
                context_input_ids=context_input_ids[at].repeat(len(texts), 1),
                context_attention_mask=context_attention_mask[at].repeat(len(texts), 1),
                doc_scores=scores[None].repeat(len(texts), 1), labels=texts, exclude_bos_score=True,
                reduce_loss=False, n_docs=count,
            ).loss  # fmt: skip
            if len(texts) < wanted:
                raise ArgumentError(
                    f"num_return_sequences must be at most the {len(texts)} different texts found, but is "
                    f"{wanted}: ask for more beams, or pass do_deduplication=False"
                )
            best.append(texts[(-loss).topk(wanted).indices])
        padding = self.config.generator.pad_token_id or 0
        length = max(texts.shape[1] for texts in best)
        return torch.cat([nn.functional.pad(t, (0, length - t.shape[1]), value=padding) for t in best])


class PassageTokenModel(RetrievalModel):
    """Each token may come from another passage (section 2.1, RAG-Token)."""

    def judge(
        self, fields: dict[str, Any], given: Tensor | None, labels: Tensor | None, count: int,
        options: dict[str, bool],
    ) -> dict[str, Any]:  # fmt: skip
        logits, scores = fields["logits"], fields["doc_scores"]
        loss = None if labels is None else self.get_nll(logits, scores, labels, options["reduce_loss"], count)
        if options["do_marginalize"]:
            logits = self.marginalize(logits, scores, count)
        return {"loss": loss, "logits": logits}

    def marginalize(self, seq_logits: Tensor, doc_scores: Tensor, n_docs: int | None = None) -> Tensor:
        """Log-probabilities (B, T, V) over all passages, from scores (B * passages, T, V)."""
        words = seq_logits.log_softmax(-1).unflatten(0, (-1, self.passages(n_docs)))
        return (words + doc_scores.log_softmax(1)[..., None, None]).logsumexp(1)

    def get_nll(
        self,
        seq_logits: Tensor,
        doc_scores: Tensor,
        target: Tensor,
        reduce_loss: bool = False,
        n_docs: int | None = None,
    ) -> Tensor:
        """-log of the product over tokens of their marginal probabilities, (B) or summed."""
        target, padding = self.shifted(target)
        words = self.marginalize(seq_logits, doc_scores, n_docs)
        right = words.gather(-1, target[..., None])[..., 0].masked_fill(padding, 0.0)
        every = words.sum(-1).masked_fill(padding, 0.0)
        return self.smoothed(right.sum(1), every.sum(1), words.shape[-1], reduce_loss)

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        doc_scores: Tensor | None = None,
        n_docs: int | None = None,
    ) -> PassagesOutput:
        """What the generator's decoder attends to: all passages of each question."""
        count = self.passages(n_docs)
        if context_input_ids is None:
            context_input_ids, context_attention_mask, doc_scores = self.found(
                input_ids, attention_mask, count
            )
        if doc_scores is None or len(context_input_ids) % count:
            raise ArgumentError(
                f"context_input_ids must have {count} rows (n_docs) a question and come with doc_scores, but "
                f"have {len(context_input_ids)} rows"
            )
        if context_attention_mask is None:
            context_attention_mask = torch.ones_like(context_input_ids)
        states = self.generator.encode(input_ids=context_input_ids, attention_mask=context_attention_mask)
        return PassagesOutput(
            states.last_hidden_state.unflatten(0, (-1, count)),
            context_attention_mask.unflatten(0, (-1, count)),
            doc_scores,
        )

    def new_cache(self, batch: int, length: int) -> Cache | None:
        """An empty cache for `batch` questions, each with all of its passages."""
        count = self.__dict__.get("_passages", self.config.n_docs)
        inner = self.generator.new_cache(batch * count, length)
        return None if inner is None else GroupedCache(inner.slots, batch, count)

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        doc_scores: Tensor | None = None,
        n_docs: int | None = None,
        **settings: Any,
    ) -> Any:
        """Texts (B * num_return_sequences, T), each token by its probability over all passages.

        As in the reference, max_length (20) bounds a text and max_new_tokens does not.
        """
        if settings.pop("max_new_tokens", None) is not None:
            logger.warning("max_new_tokens has no effect here: pass max_length")
        lengths = (settings.get("generation_config"), self.generation_config)
        settings.setdefault("max_length", next((c.max_length for c in lengths if c is not None), 20))
        with torch.no_grad():
            read = self.encode(
                input_ids, attention_mask, context_input_ids, context_attention_mask, doc_scores, n_docs
            )
        self.__dict__["_passages"] = self.passages(n_docs)
        try:
            return super().generate(  # type: ignore[misc]
                encoder_outputs=read, n_docs=self.passages(n_docs), **settings
            )
        finally:
            self.__dict__.pop("_passages", None)
