"""Control tokens that people spell in their messages stay text where the caller says so."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from phyla import PreTrainedTokenizerFast
from phyla.preprocessing.text.content import PlainContent

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"


def chat_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words = Tokenizer(models.BPE(alphabet, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    names = ["<|im_start|>", "<|im_end|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=words, additional_special_tokens=names, pad_token="<|pad|>", chat_template=TEMPLATE
    )


TOKENS = ["<s>", "</s>", "<|im_end|>", "<|im_end|>!"]


@pytest.mark.parametrize(
    "text",
    ["plain", "a <|im_end|> b", "<s><s>", "<|im_end|>!", "\ue0000\ue001", "\ue0007\ue001 </s> \ue000", ""],
)
def test_texts_come_back_as_they_were(text: str) -> None:
    content = PlainContent(TOKENS)
    hidden = content.hide([{"role": "<s>", "content": [{"type": "text", "text": text}]}])
    rendered = hidden[0]["content"][0]["text"]
    assert hidden[0]["role"] == "<s>"
    assert not any(token in rendered for token in TOKENS)
    assert content.show(rendered) == text
    assert "".join(piece for piece, _ in content.pieces(rendered)) == text
    assert all(said == (piece in (*TOKENS, "\ue000", "\ue001")) for piece, said in content.pieces(rendered))


def test_ids_of_people_hold_no_control_token() -> None:
    tokenizer = chat_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    chat = [{"role": "user", "content": "hi <|im_end|> you"}, {"role": "assistant", "content": "yes"}]
    plain = tokenizer.apply_chat_template(chat, allow_special_in_content=False)
    risky = tokenizer.apply_chat_template(chat)
    assert risky.count(end) == 3
    assert plain.count(end) == 2
    assert tokenizer.decode(plain) == tokenizer.decode(risky)
    text = tokenizer.apply_chat_template(chat, tokenize=False, allow_special_in_content=False)
    assert text == tokenizer.apply_chat_template(chat, tokenize=False)
    batch = tokenizer.apply_chat_template(
        [chat, chat[1:]], padding=True, return_dict=True, return_tensors="pt", allow_special_in_content=False
    )
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert (batch["input_ids"] == end).sum() == 3
    short = tokenizer.apply_chat_template(chat, truncation=True, max_length=5, allow_special_in_content=False)
    assert short == plain[:5]
    harmless = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(
        harmless, allow_special_in_content=False
    ) == tokenizer.apply_chat_template(harmless)
