"""Prices: configured before listed, tiers, unknown names, and nothing fetched."""

import socket
from typing import Any

import pytest
from pipeline_plugins.price.table import PriceTable, Rate, Tiered

from pipeline import Usage
from pipeline.price import Price


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_configured_price_is_before_the_lists() -> None:
    table = PriceTable({"gpt-4o-mini": Rate(prompt=7, completion=8, cached=1)})
    assert table.find("gpt-4o-mini") == Price(7, 8, 1)


def test_globs_are_tried_in_their_order_and_exact_names_first() -> None:
    rates = {"Smol*": Rate(second=1), "S*": Rate(second=2), "SmolLM2-x": Rate(second=3)}
    table = PriceTable(rates)
    assert [table.find(name) for name in ("SmolLM2-135M", "Sonar", "SmolLM2-x")] == [
        Price(second=1),
        Price(second=2),
        Price(second=3),
    ]


@pytest.mark.parametrize(
    ("name", "provider"),
    [("gpt-4o-mini", None), ("openai/gpt-4o-mini", None), ("gpt-4o-mini", "openai")],
)
def test_the_list_has_what_hosted_models_cost(name: str, provider: str | None) -> None:
    price = PriceTable({}, provider).find(name)
    assert price is not None
    assert 0 < (price.cached or 0) < price.prompt < price.completion


def test_embeddings_are_found_by_their_exact_name() -> None:
    assert PriceTable({}).find("text-embedding-3-small") is not None


@pytest.mark.parametrize("name", ["SmolLM2-135M-Instruct", "echo", "default", "", "/", "x" * 300])
def test_what_nobody_lists_has_no_price(name: str) -> None:
    assert PriceTable({}).find(name) is None


@pytest.mark.parametrize("tokens", [1, 1000, 200_000, 200_001, 900_000])
def test_long_prompts_cost_what_the_list_itself_works_out(tokens: int) -> None:
    from genai_prices import Usage as ListedUsage
    from genai_prices import calc_price

    price = PriceTable({}).find("gemini-2.5-pro")
    assert isinstance(price, Tiered)
    usage = Usage(tokens, 500, tokens // 2)
    listed = ListedUsage(input_tokens=tokens, output_tokens=500, cache_read_tokens=tokens // 2)
    assert price.cost(usage) == pytest.approx(float(calc_price(listed, "gemini-2.5-pro").total_price))


def test_names_from_clients_are_not_remembered_without_end() -> None:
    table = PriceTable({})
    for n in range(5000):
        table.find(f"junk-{n}")
    assert len(table._known) <= 4097
