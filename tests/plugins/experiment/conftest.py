"""Either database, as tests of the ledger have it."""

from tests.plugins.ledger.conftest import connect as connect
