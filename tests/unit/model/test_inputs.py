"""A generation's inputs: what names and references stand for, filled into a spec."""

from __future__ import annotations

import dataclasses

import pytest

from dataplane.model.inputs import (
    MAX_ENDPOINTS,
    NO_INPUTS,
    Inputs,
    InputsError,
    filled,
    host_names,
    references,
)
from dataplane.model.spec import AppSpec, EndpointSpec, HeaderEdits
from tests.unit.model.test_spec import SPEC

SECRET = "s3cret-content"
INPUTS = Inputs(
    addresses=(("db.internal", ("10.0.0.1", "10.0.0.2")),),
    secrets=(("env:TOKEN", SECRET),),
)


def named(*endpoints: tuple[str, int]) -> AppSpec:
    """The spec with these endpoints, and a secret in its first route."""
    route = SPEC.routes[0]
    edits = HeaderEdits(set=(("x-app", "a"),), remove=(), secrets=(("a-token", "env:TOKEN"),))
    upstream = dataclasses.replace(
        SPEC.upstreams[0],
        endpoints=tuple(EndpointSpec(address=address, port=port) for address, port in endpoints),
    )
    return dataclasses.replace(
        SPEC,
        routes=(dataclasses.replace(route, request_headers=edits), *SPEC.routes[1:]),
        upstreams=(upstream,),
    )


def test_spec_without_names_and_references_needs_nothing() -> None:
    assert host_names(SPEC) == ()
    assert references(SPEC) == ()
    assert filled(SPEC, NO_INPUTS) is SPEC


def test_names_become_their_addresses_and_references_their_contents() -> None:
    spec = named(("db.internal", 5432), ("::1", 5432), ("10.9.9.9", 1))
    assert host_names(spec) == ("db.internal",)
    assert references(spec) == ("env:TOKEN",)
    made = filled(spec, INPUTS)
    told = [(endpoint.address, endpoint.port) for endpoint in made.upstreams[0].endpoints]
    assert told == [("10.0.0.1", 5432), ("10.0.0.2", 5432), ("::1", 5432), ("10.9.9.9", 1)]
    edits = made.routes[0].request_headers
    assert edits == HeaderEdits(set=(("a-token", SECRET), ("x-app", "a")), remove=())
    assert host_names(made) == references(made) == ()


def test_address_that_stands_behind_two_names_is_one_endpoint() -> None:
    inputs = dataclasses.replace(INPUTS, addresses=(("a", ("10.0.0.1",)), ("b", ("10.0.0.1",))))
    made = filled(named(("a", 1), ("b", 1), ("b", 2)), inputs)
    told = [(endpoint.address, endpoint.port) for endpoint in made.upstreams[0].endpoints]
    assert told == [("10.0.0.1", 1), ("10.0.0.1", 2)]


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (NO_INPUTS, "the secret env:TOKEN was not given"),
        (dataclasses.replace(INPUTS, addresses=()), "no address was given for db.internal"),
        (
            dataclasses.replace(
                INPUTS,
                addresses=(("db.internal", tuple(map(str, range(MAX_ENDPOINTS + 1)))),),
            ),
            "has 1001 endpoints, at most 1000",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_told(inputs: Inputs, reason: str) -> None:
    with pytest.raises(InputsError, match=reason):
        filled(named(("db.internal", 5432)), inputs)


def test_json_gives_back_the_same_inputs() -> None:
    assert Inputs.from_json(INPUTS.to_json()) == INPUTS


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"v":2,"addresses":[],"secrets":[["env:TOKEN","s3cret-content"]]}',
        b'{"v":1,"addresses":[],"secrets":["s3cret-content"]}',
        b'{"v":1,"addresses":[],"s3cret-content":1}',
    ],
)
def test_inputs_that_cannot_be_read_are_not_quoted(data: bytes) -> None:
    with pytest.raises(InputsError) as told:
        Inputs.from_json(data)
    assert SECRET not in str(told.value)
    assert told.value.__cause__ is None


def test_content_is_not_printed() -> None:
    assert SECRET not in repr(INPUTS)
    assert SECRET not in f"{INPUTS}"
