"""The one table of all families: model_type -> file, configuration, public classes and tasks, modality."""

from phyla.registry import Row

_BASE, _LM, _SEQ, _TOK, _QA = (
    "base-model", "causal-lm", "sequence-classification", "token-classification", "question-answering",
)  # fmt: skip
_MLM, _MC, _NSP, _PRE, _S2S = (
    "masked-lm", "multiple-choice", "next-sentence-prediction", "pretraining", "seq2seq-lm",
)  # fmt: skip
_IMG, _MIM = "image-classification", "masked-image-modeling"


def _row(model_type: str, config: str, modality: str, **classes: str) -> Row:
    return Row(model_type, f"phyla.families.{model_type.replace('-', '_')}", config, classes, modality)


_ZERO = "zero-shot-image-classification"

_ROWS = (
    _row("bart", "BartConfig", "text", BartModel=_BASE, BartForConditionalGeneration=_S2S,
         BartForCausalLM=_LM, BartForSequenceClassification=_SEQ, BartForQuestionAnswering=_QA),
    _row("bert", "BertConfig", "text", BertModel=_BASE, BertForPreTraining=_PRE, BertForMaskedLM=_MLM,
         BertLMHeadModel=_LM, BertForNextSentencePrediction=_NSP, BertForSequenceClassification=_SEQ,
         BertForTokenClassification=_TOK, BertForQuestionAnswering=_QA, BertForMultipleChoice=_MC),
    _row("bloom", "BloomConfig", "text", BloomModel=_BASE, BloomForCausalLM=_LM,
         BloomForSequenceClassification=_SEQ, BloomForTokenClassification=_TOK,
         BloomForQuestionAnswering=_QA),
    _row("clip", "CLIPConfig", "multimodal", CLIPModel=_BASE, CLIPForImageClassification=_IMG),
    _row("clip_text_model", "CLIPTextConfig", "text", CLIPTextModel=_BASE,
         CLIPTextModelWithProjection="text-projection"),
    _row("clip_vision_model", "CLIPVisionConfig", "vision", CLIPVisionModel=_BASE,
         CLIPVisionModelWithProjection="image-projection"),
    _row("distilbert", "DistilBertConfig", "text", DistilBertModel=_BASE, DistilBertForMaskedLM=_MLM,
         DistilBertForSequenceClassification=_SEQ, DistilBertForTokenClassification=_TOK,
         DistilBertForQuestionAnswering=_QA, DistilBertForMultipleChoice=_MC),
    _row("falcon", "FalconConfig", "text", FalconModel=_BASE, FalconForCausalLM=_LM,
         FalconForSequenceClassification=_SEQ, FalconForTokenClassification=_TOK,
         FalconForQuestionAnswering=_QA),
    _row("gemma2", "Gemma2Config", "text", Gemma2Model=_BASE, Gemma2ForCausalLM=_LM,
         Gemma2ForSequenceClassification=_SEQ, Gemma2ForTokenClassification=_TOK),
    _row("gpt2", "GPT2Config", "text", GPT2Model=_BASE, GPT2LMHeadModel=_LM,
         GPT2DoubleHeadsModel="double-heads", GPT2ForSequenceClassification=_SEQ,
         GPT2ForTokenClassification=_TOK, GPT2ForQuestionAnswering=_QA),
    _row("gpt_neox", "GPTNeoXConfig", "text", GPTNeoXModel=_BASE, GPTNeoXForCausalLM=_LM,
         GPTNeoXForSequenceClassification=_SEQ, GPTNeoXForTokenClassification=_TOK,
         GPTNeoXForQuestionAnswering=_QA),
    _row("llama", "LlamaConfig", "text", LlamaModel=_BASE, LlamaForCausalLM=_LM,
         LlamaForSequenceClassification=_SEQ, LlamaForTokenClassification=_TOK,
         LlamaForQuestionAnswering=_QA),
    _row("mamba", "MambaConfig", "text", MambaModel=_BASE, MambaForCausalLM=_LM),
    _row("mistral", "MistralConfig", "text", MistralModel=_BASE, MistralForCausalLM=_LM,
         MistralForSequenceClassification=_SEQ, MistralForTokenClassification=_TOK,
         MistralForQuestionAnswering=_QA),
    _row("mixtral", "MixtralConfig", "text", MixtralModel=_BASE, MixtralForCausalLM=_LM,
         MixtralForSequenceClassification=_SEQ, MixtralForTokenClassification=_TOK,
         MixtralForQuestionAnswering=_QA),
    _row("opt", "OPTConfig", "text", OPTModel=_BASE, OPTForCausalLM=_LM, OPTForSequenceClassification=_SEQ,
         OPTForQuestionAnswering=_QA),
    _row("phi3", "Phi3Config", "text", Phi3Model=_BASE, Phi3ForCausalLM=_LM,
         Phi3ForSequenceClassification=_SEQ, Phi3ForTokenClassification=_TOK),
    _row("qwen2", "Qwen2Config", "text", Qwen2Model=_BASE, Qwen2ForCausalLM=_LM,
         Qwen2ForSequenceClassification=_SEQ, Qwen2ForTokenClassification=_TOK,
         Qwen2ForQuestionAnswering=_QA),
    _row("roberta", "RobertaConfig", "text", RobertaModel=_BASE, RobertaForMaskedLM=_MLM,
         RobertaForCausalLM=_LM, RobertaForSequenceClassification=_SEQ, RobertaForTokenClassification=_TOK,
         RobertaForQuestionAnswering=_QA, RobertaForMultipleChoice=_MC),
    _row("t5", "T5Config", "text", T5Model=_BASE, T5ForConditionalGeneration=_S2S,
         T5EncoderModel="text-encoding", T5ForSequenceClassification=_SEQ, T5ForTokenClassification=_TOK,
         T5ForQuestionAnswering=_QA),
    _row("vit", "ViTConfig", "vision", ViTModel=_BASE, ViTForImageClassification=_IMG,
         ViTForMaskedImageModeling=_MIM),
)  # fmt: skip

FAMILIES: dict[str, Row] = {row.model_type: row for row in _ROWS}
