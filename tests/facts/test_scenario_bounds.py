"""Counts that set the size of arrays have bounds, which the messages name."""

import pytest
from pydantic import TypeAdapter, ValidationError

from moesim.desk.docstrings import field_notes
from moesim.desk.schema import schema_of
from moesim.facts.model import MoeModel
from moesim.facts.scenario import Scenario, Workload

BOUNDS = [
    (Workload, "tokens_per_gpu", 2**20),
    (Workload, "context", 2**24),
    (Scenario, "steps", 10**6),
    (MoeModel, "layers", 10_000),
    (MoeModel, "experts", 2**16),
]


@pytest.mark.parametrize(("section", "field", "most"), BOUNDS)
def test_a_count_beyond_its_bound_is_refused_by_name(section, field, most):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(section).validate_python({field: most + 1})
    told = {error["loc"][-1]: error["msg"] for error in caught.value.errors()}
    assert f"{most + 1} is too large: it must be at most {most}" in told[field]
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(section).validate_python({field: most, "no such key": 1})
    assert field not in {error["loc"][-1] for error in caught.value.errors()}


@pytest.mark.parametrize(("section", "field", "most"), BOUNDS)
def test_the_documentation_of_a_field_names_its_bound(section, field, most):
    assert f"{most:,}" in field_notes(section)[field]
    definitions = {}
    schema_of(section, definitions)
    assert definitions[section.__name__]["properties"][field]["maximum"] == most
