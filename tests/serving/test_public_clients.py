"""A program of somebody else's talks to the server as to OpenAI: llm, as a user starts it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .live import serving, small_service
from .small import TOKENIZER, small_bank

LLM = shutil.which("llm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
QUESTION = "Hull status?"
MODELS = """
- {model_id: mine, model_name: a, api_base: "ADDRESS/v1"}
- {model_id: text, model_name: a, api_base: "ADDRESS/v1", completion: true}
- {model_id: nobody, model_name: nobody, api_base: "ADDRESS/v1"}
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """llm's answer: (what it printed, what it complained)."""
    folder = tmp_path_factory.mktemp("llm")
    with serving(small_service()) as address:
        text = MODELS.replace("ADDRESS", address)
        (folder / "extra-openai-models.yaml").write_text(text, encoding="utf-8")
        env = {**os.environ, "LLM_USER_PATH": str(folder), "OPENAI_API_KEY": "any"}

        def ask(*words):
            command = [LLM, *words, "-o", "temperature", "0", "-o", "max_tokens", "12"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
            return done.stdout, done.stderr

        yield ask


@pytest.mark.slow
@pytest.mark.skipif(LLM is None, reason="llm was not tried: pip install llm (it comes with [test])")
def test_llm_gets_the_solo_runs_answers_and_our_refusals(ask):
    asked = [{"role": "user", "content": QUESTION}]
    bank = small_bank()
    alone = bank.generate([("a", asked)], max_new_tokens=12)[0]
    assert ask("-m", "mine", QUESTION)[0] == f"{alone}\n"
    assert ask("-m", "mine", "--no-stream", QUESTION)[0] == f"{alone}\n"
    turns = [*asked, {"role": "assistant", "content": alone}, {"role": "user", "content": "Fuel?"}]
    further = bank.generate([("a", turns)], max_new_tokens=12)[0]
    assert ask("-c", "Fuel?")[0] == f"{further}\n"  # it sends the conversation again
    prompt = TOKENIZER.encode_text(QUESTION)
    text = ask("-m", "text", QUESTION)[0]
    assert text.strip() == bank.generate([("a", prompt)], max_new_tokens=12)[0]
    words = "the model 'nobody' does not exist"
    assert words in ask("-m", "nobody", QUESTION)[1]
    assert "leave response_format out" in ask("-m", "mine", "-o", "json_object", "1", QUESTION)[1]
