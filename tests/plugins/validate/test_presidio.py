"""`validate=presidio`: another library's recognisers behind the same hook."""

import pytest
from pipeline_plugins.validate.presidio import Presidio

from pipeline.problems import ConfigError
from tests.plugins.validate.models import Told, chat, run

pytest.importorskip(
    "presidio_analyzer", reason="needs the extra `presidio`, which brings spaCy: 230 MB for these tests alone"
)


def test_what_it_finds_is_redacted_without_a_network() -> None:
    model = Told("fine")
    validator = Presidio(Presidio.Config(), "presidio", model.edge())

    async def go() -> None:
        await validator(chat("mail a.b@example.com or pay with 4111 1111 1111 1111, not 4111 1111 1111 1112"))
        await validator.close()

    run(go())
    sent = model.calls[0].body["messages"][0]["content"]
    assert sent == "mail <EMAIL_ADDRESS> or pay with <CREDIT_CARD>, not 4111 1111 1111 1112"


@pytest.mark.parametrize("name", ["EmailRecogniser", "SpacyRecognizer", "PatternMatch"])
def test_a_recogniser_that_is_unknown_or_needs_a_model_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match="works by patterns") as caught:
        Presidio(Presidio.Config(recognizers=[name]), "presidio", Told("x").edge())
    assert caught.value.problems[0].path == "recognizers.0"
