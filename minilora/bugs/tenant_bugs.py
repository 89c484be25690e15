"""Bugs of keys, quotas and caches of tenants, in the form that ``bugs/catalog.py`` describes."""

from __future__ import annotations

from .bug import Bug

TENANTS = (
    Bug(name="the name that was a salt", where="serving.answer_cache:hash_of_parts",
        right="return hash_of_texts(text for pair in parts for text in pair)",
        wrong="return hash_of_texts(value for _, value in parts)",
        story="The parts of a key stand side by side without saying which is which. A tenant whose "
              "name is that of an adapter then has the adapter's key. In vLLM an adapter's name "
              "and a request's cache_salt met so, and the base was given keys and values that "
              "the adapter had computed.",
        thread="vllm-project/vllm #44701",
        caught_by="serving/test_answer_cache.py::test_vllm_44701_one_text_in_two_places_has_two_keys"),
    Bug(name="the answer that was too quick", where="serving.answer_cache:key_of",
        right='("tenant", request.tenant),', wrong='("tenant", ""),',
        story="Answers are kept for everybody. Each is right, and a quick one says that somebody "
              "asked this before. The thread gives the prefix cache of vLLM a salt for that reason "
              "(CVE-2025-46570).",
        thread="vllm-project/vllm #17045",
        caught_by="serving/test_answer_cache.py::test_whatever_an_answer_depends_on_is_in_its_key[tenant]"),
    Bug(name="the clock that was set back", where="serving.quotas:refresh",
        right="token_level + max(0, ?1 - at) * tokens", wrong="token_level + (?1 - at) * tokens",
        story="The clock goes back by two days, and the bucket loses two days' worth of tokens. "
              "Clients that are far from their limit are refused.",
        thread="varnish/libvmod-vsthrottle #4",
        caught_by="serving/test_tenants.py::test_a_clock_set_back_gives_nothing_and_stops_nothing[-1]"),
    Bug(name="compared up to the first difference", where="serving.tenants:Tenants.who",
        right='hmac.compare_digest(hash_of(token if shape else ""), hashed)',
        wrong='hash_of(token if shape else "") == hashed',
        story="A comparison that ends at the first wrong byte takes the longer the more bytes are "
              "right. Against a hash that helps nobody much; against the key itself, as in the "
              "thread, it gives the key away byte by byte to who can measure well enough.",
        thread="ggml-org/llama.cpp #24825",
        caught_by="serving/test_tenants.py::test_hashes_are_compared_in_constant_time_for_unknown_keys_too"),
    Bug(name="open again", where="serving.tenants:Tenants.who",
        right='"select 1 from key limit 1"',
        wrong='"select 1 from key where revoked is null limit 1"',
        story="Without keys everybody may do everything, for a first try on a laptop. Somebody "
              "revokes the last key because it leaked, and the server opens to all.",
        thread="",
        caught_by="serving/test_tenants.py::test_until_the_first_key_everybody_is_local_and_never_again"),
    Bug(name="paid three times", where="serving.quotas:admit",
        right="if earlier is not None and earlier[2] < MOST_TRIES:", wrong="if False:",
        story="The client does not hear back and tries again, twice by itself. Each try is "
              "charged, and a slow minute of the server uses up its customers' quotas.",
        thread="",
        caught_by="serving/test_tenants.py::test_retries_are_charged_once_and_another_request_needs_another_id"),
)  # fmt: skip
