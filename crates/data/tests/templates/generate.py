"""Writes the fixtures of this folder: chat templates, a tokenizer with their special tokens, and what transformers makes of both.

`tokenizer.json` are byte-level pairs learned from a few sentences. `golden.json` lists cases: the folder of a template
(`NAME/tokenizer_config.json` or `NAME/chat_template.jinja`), messages, the text that transformers renders, its token ids, and which
of them are the assistant's. For a template with `{% generation %}` the mask is that of `return_assistant_tokens_mask`. For one
without, it is taken from renderings of the messages before each answer, with the prompt for an answer, and up to it.

    python -m venv venv && venv/bin/pip install transformers==5.24.0 jinja2 && venv/bin/python generate.py
"""

import json
import pathlib

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FOLDER = pathlib.Path(__file__).resolve().parent
SPECIAL = [
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>", "</s>", "[INST]", "[/INST]",
]  # fmt: skip
TEXT = [
    "You are a helpful assistant. Answer briefly.",
    "What is the capital of France? The capital of France is Paris.",
    "Reverse the word stone. enots",
    "Hello, how are you? I am fine, thank you. And you?",
]

# In the manner of Llama 3, with marks around what the assistant says.
HEADERS = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- message['content'] | trim + '<|eot_id|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# In the manner of Llama 2 and Mistral: the system's words stand in the first question, and roles must alternate.
BRACKETS = """{% if messages[0]['role'] == 'system' %}
{% set loop_messages = messages[1:] %}
{% set system_message = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' %}
{% else %}
{% set loop_messages = messages %}
{% set system_message = '' %}
{% endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{- '[INST] ' + (system_message if loop.first else '') + message['content'].strip() + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'].strip() + eos_token }}
    {%- endif %}
{% endfor %}"""

# The built-in one.
CHATML = (FOLDER / "../../src/chatml.jinja").read_text()

# Nothing that a model was published with, but all that templates ask of their language.
ODD = """{% set ns = namespace(seen=0) %}
{% macro head(role) %}### {{ role | capitalize }}:{% endmacro %}
{% for message in messages %}
{% if message.content.startswith('skip') %}{% continue %}{% endif %}
{% set ns.seen = ns.seen + 1 %}
{{ head(message.role) }} {{ message.content.split(' ') | join('_') }} {{ {'n': ns.seen, 'x': [1, 'é<&>']} | tojson }}
{% if loop.index > 5 %}{% break %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}
### Assistant:{% endif %}
"""

TALK = [
    {"role": "system", "content": "You are a helpful assistant. "},
    {"role": "user", "content": "Hello, how are you?"},
    {"role": "assistant", "content": "  I am fine, thank you.\n\nAnd you? é€"},
    {"role": "user", "content": "\nWhat is the capital of France?"},
    {"role": "assistant", "content": "Paris"},
]
# One that talks of the special tokens, and one that begins with a question and ends with one.
ABOUT = [{"role": "user", "content": "Say </s> or <|eot_id|>"}, {"role": "assistant", "content": "[/INST] ### Assistant:"}]
OPEN = TALK[1:4]


def learn():
    """Learns the pairs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    tokenizer.save(str(FOLDER / "tokenizer.json"))


def prefixes(tokenizer, messages):
    """Which tokens are the assistant's, from renderings of prefixes."""
    render = lambda part, prompt: tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=prompt)
    text = render(messages, False)
    spans = []
    for at, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = render(messages[:at], True), render(messages[: at + 1], False)
            assert after.startswith(before) and text.startswith(after)
            spans.append((len(before), len(after)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    inside = [int(any(a <= start and end <= b for a, b in spans)) for start, end in encoded["offset_mapping"]]
    return text, encoded["input_ids"], inside


def marked(tokenizer, messages):
    """Which tokens are the assistant's, as transformers says."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    return text, out["input_ids"], out["assistant_masks"]


def write(name, template, bos, eos):
    """Writes a template in one of the ways in which they are published."""
    folder = FOLDER / name
    folder.mkdir(exist_ok=True)
    config = {"bos_token": bos, "eos_token": {"content": eos}}
    if name == "headers":
        (folder / "chat_template.jinja").write_text(template)
    elif name == "odd":
        config["chat_template"] = template
    else:
        several = [{"name": "tool_use", "template": "never read"}, {"name": "default", "template": template}]
        config["chat_template"] = several
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def main():
    learn()
    cases = []
    for name, template, bos, eos, talks, mask in [
        ("headers", HEADERS, "<|begin_of_text|>", "<|eot_id|>", [TALK, ABOUT, OPEN], marked),
        ("brackets", BRACKETS, "<s>", "</s>", [TALK, ABOUT, OPEN], prefixes),
        ("chatml", CHATML, "<s>", "</s>", [TALK, ABOUT, OPEN], marked),
        ("odd", ODD, "<s>", "</s>", [TALK, ABOUT, [{"role": "user", "content": "skip me"}, *OPEN[:2]]], prefixes),
    ]:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(FOLDER / "tokenizer.json"), bos_token=bos, eos_token=eos)
        tokenizer.chat_template = template
        if name != "chatml":
            write(name, template, bos, eos)
        for messages in talks:
            text, ids, mask_of = mask(tokenizer, messages)
            cases.append(dict(template=name, messages=messages, text=text, ids=ids, mask=mask_of))
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (FOLDER / "golden.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
