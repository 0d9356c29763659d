"""ChatML, the chat template of the bundled models.

    <|im_start|>role
    content<|im_end|>

for each turn, and ``<|im_start|>assistant`` with a line feed when an answer is to follow. Nothing is trimmed or added,
so a prompt's text is always a prefix of the whole conversation's.

There is **no default system prompt**. SmolLM2's own template puts one in when the conversation has none ("You are a
helpful AI assistant named SmolLM ..."); what the model reads then differs from what the data says, and a server that
sends a system turn of its own asks under another condition than the one trained on. Who wants a system turn writes it
into the data and the requests.
"""

START = "<|im_start|>"
END = "<|im_end|>"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
