"""A small Llama with Hugging Face's names, its tokenizer, and the folders it lives in."""
