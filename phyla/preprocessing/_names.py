"""Public names of preprocessing and the modules that have them."""

_TEXT = "phyla.preprocessing.text"
NAMES: dict[str, str] = {
    "AddedToken": f"{_TEXT}.tokens",
    "AutoTokenizer": f"{_TEXT}.auto",
    "BatchEncoding": f"{_TEXT}.batch",
    "CharSpan": f"{_TEXT}.batch",
    "PaddingStrategy": f"{_TEXT}.strategy",
    "PreTrainedTokenizer": f"{_TEXT}.slow",
    "PreTrainedTokenizerBase": f"{_TEXT}.base",
    "PreTrainedTokenizerFast": f"{_TEXT}.fast",
    "SpecialTokensMixin": f"{_TEXT}.tokens",
    "TensorType": f"{_TEXT}.strategy",
    "TokenIdError": f"{_TEXT}.tokens",
    "TokenSpan": f"{_TEXT}.batch",
    "TruncationStrategy": f"{_TEXT}.strategy",
    **dict.fromkeys(
        (
            "BasicTokenizer", "WordpieceTokenizer",
            "BartTokenizer", "BartTokenizerFast", "BertTokenizer", "BertTokenizerFast", "BloomTokenizerFast", "CLIPTokenizer",
            "CLIPTokenizerFast", "ConvBertTokenizer", "ConvBertTokenizerFast", "DPRContextEncoderTokenizer",
            "DPRContextEncoderTokenizerFast", "DPRQuestionEncoderTokenizer", "DPRQuestionEncoderTokenizerFast",
            "DistilBertTokenizer", "DistilBertTokenizerFast", "ElectraTokenizer", "ElectraTokenizerFast", "GPT2Tokenizer",
            "GPT2TokenizerFast", "GPTNeoXTokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast", "LayoutLMTokenizer",
            "LayoutLMTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast", "LxmertTokenizer", "LxmertTokenizerFast",
            "MobileBertTokenizer", "MobileBertTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast", "RetriBertTokenizer",
            "RetriBertTokenizerFast", "RobertaTokenizer", "RobertaTokenizerFast", "SqueezeBertTokenizer",
            "SqueezeBertTokenizerFast", "T5Tokenizer", "T5TokenizerFast",
        ),
        f"{_TEXT}.classes",
    ),
}  # fmt: skip
