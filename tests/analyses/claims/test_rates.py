"""A small part of the table of docs/claims.md: wrong verdicts in planted studies."""

import pytest
from claim_rates import CLAIMS, KINDS, Claim, rates

STUDIES = 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_planted_studies_get_hardly_a_wrong_verdict(claim: Claim, kind: str) -> None:
    found = rates(claim, kind, STUDIES)
    assert sum(found[verdict] for verdict in claim.wrong[kind]) <= 4  # 5 % of 20 is 1; 4 or fewer in 99.7 % of tests
    if kind == "real":
        assert found["undecided"] <= STUDIES / 2
