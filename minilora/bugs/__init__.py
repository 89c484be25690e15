"""Bugs that LoRA code has had or invites, and what catches each."""
