"""Does code that was written for TTAPI's own endpoint get what it reads?"""

import re

import pytest

from tests.api.surfaces import TTAPI
from tests.api.wire import ask, send_raw
from tests.sandbox_server import RunningSandbox
from tests.service import Service


def test_the_snippet_of_ttapis_page_works_as_it_is(service: Service, sandbox: RunningSandbox) -> None:
    answer = ask(
        "POST",
        f"{service.url}/openai/v1/images/generations",
        headers={"TT-API-KEY": service.key, "Content-Type": "application/json"},
        content=b'{"prompt": "A cute baby sea otter", "size": "1024x1024"}',
    )

    content = answer.json()
    assert answer.status_code == 200
    assert (content["status"], content["message"]) == ("SUCCESS", "success")
    assert content["data"].keys() == {"created", "data"}
    (item,) = content["data"]["data"]
    assert item.keys() == {"revised_prompt", "url"}
    assert ask("GET", item["url"]).headers["content-type"] == "image/png"
    assert sandbox.witness()["billed"] == 1


def test_the_url_is_found_by_a_regular_expression_over_the_body(service: Service) -> None:
    # As a Qt client does: no space behind the colon, no slash escaped.
    answer = TTAPI.order(service, "foxes & hares / owls", size="1792x1024")

    (url,) = re.findall(r'"url":"(.*?)"', answer.text)
    assert ask("GET", url).status_code == 200
    assert '"revised_prompt":"foxes & hares / owls, drawn in the sandbox."' in answer.text
    assert ": " not in answer.text
    assert ', "' not in answer.text


def test_a_failure_is_compact_too_and_has_no_data(service: Service) -> None:
    answer = TTAPI.order(service, "a red fox [[refuse]]")

    assert answer.text.startswith('{"status":"FAILED","message":"The image provider rejected')
    assert answer.text.endswith(',"data":null}')


def test_pictures_in_base64_are_had_for_the_asking(service: Service) -> None:
    answer = TTAPI.order(service, "a red fox", response_format="b64_json")

    (item,) = TTAPI.images(answer)
    assert item.keys() == {"revised_prompt", "b64_json"}


def test_a_revised_prompt_that_is_not_known_is_null(service: Service) -> None:
    service.order("a red fox", headers={"idempotency-key": "k"})
    service.rows("UPDATE generations SET revised_prompt = NULL")

    (item,) = TTAPI.images(TTAPI.order(service, "a red fox", headers={"idempotency-key": "k"}))

    assert item["revised_prompt"] is None


@pytest.mark.parametrize(
    ("method", "target"), [("GET", "/openai/v1/models"), ("POST", "/openai/v1/"), ("PUT", "/openai/v1/%0a")]
)
def test_a_path_that_leads_nowhere_is_told_in_ttapis_form(service: Service, method: str, target: str) -> None:
    answer = send_raw(service, method, target, body=b"{}")

    assert answer.status == 404
    assert answer.json() == {"status": "FAILED", "message": "There is nothing here.", "data": None}


def test_headers_are_read_however_they_are_written(service: Service) -> None:
    headers = [(b"authorization", b""), (b"tT-aPi-KeY", service.key.encode())]

    answer = send_raw(service, "POST", TTAPI.path, headers=headers, body=b'{"prompt":"a red fox"}')

    assert answer.status == 200
