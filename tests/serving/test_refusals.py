"""Errors have OpenAI's shape, and the headers that its client acts on."""

import httpx
import openai
import pytest

from minilora.serving.refusals import Refused, unknown_model, wait_first

CASES = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    429: openai.RateLimitError,
    503: openai.InternalServerError,
}


@pytest.mark.parametrize("status", CASES)
def test_the_official_client_reads_every_field(status):
    refused = Refused(status, "why", param="model", code="some_code", headers={"x-y": "z"})
    response = httpx.Response(
        status,
        json=refused.body(),
        headers=refused.headers,
        request=httpx.Request("POST", "http://x"),
    )
    error = openai.OpenAI(api_key="k")._make_status_error_from_response(response)
    assert type(error) is CASES[status]
    assert (error.code, error.param) == ("some_code", "model")
    assert error.type == refused.type
    assert error.response.headers["x-y"] == "z"


def test_a_foreign_model_and_a_missing_one_differ_in_the_name_alone():
    one, other = unknown_model("naval"), unknown_model("abcde")
    assert one.message.replace("naval", "abcde") == other.message
    assert (one.status, one.code, one.headers) == (other.status, other.code, other.headers)


@pytest.mark.parametrize("seconds", [0.0, 0.2, 1.0, 59.5])
def test_a_wait_is_whole_seconds_and_at_least_one(seconds):
    header = wait_first(seconds, "later").headers["retry-after"]
    assert int(header) >= max(1, seconds)
    assert int(header) < seconds + 2


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((400, "invalid_request_error"), (401, "authentication_error"), (499, None)),
        *((403, "permission_error"), (404, None), (409, None), (413, None)),
        *((429, "rate_limit_error"), (500, "server_error"), (503, "server_error")),
    ],
)
def test_the_type_follows_from_the_status_unless_it_is_given(status, kind):
    assert Refused(status, "why").body()["error"]["type"] == (kind or "invalid_request_error")
    assert Refused(status, "why", type="mine").type == "mine"


def test_the_usual_refusals_have_their_status():
    unknown = unknown_model("x" * 200)
    assert (unknown.status, unknown.param) == (404, "model")
    assert len(unknown.message) < 160, "a long name is cut"
    assert wait_first(0.0, "later").headers == {"retry-after": "1"}
    assert wait_first(2.0, "later").headers == {"retry-after": "2"}
    later = wait_first(1.5, "later")
    assert (later.status, later.code) == (429, "rate_limit_exceeded")
    stopping = wait_first(5, "later", 503, "draining")
    assert (stopping.status, stopping.code, stopping.type) == (503, "draining", "server_error")
