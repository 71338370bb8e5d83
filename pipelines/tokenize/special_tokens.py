"""The special tokens of a tokenizer that is trained here, by id: 0 ends a document, the others mark turns of a conversation."""

END = "<|endoftext|>"
SPECIAL = (END, "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
