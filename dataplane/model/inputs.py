"""What a generation starts with beside its image: its secrets, and what its host names stand for.

An image names both and holds neither. Image and inputs together are what makes one generation
differ from another; a restart after a crash uses the same inputs again. Pure; `Inputs` never shows
a secret's content when it is printed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Final

from dataplane.model.spec import (
    AppSpec,
    EndpointSpec,
    HeaderEdits,
    RouteSpec,
    SpecError,
    UpstreamSpec,
    decode,
)

INPUTS_VERSION: Final = 1
MAX_INPUTS_BYTES: Final = 128 * 1024  # what a socket's buffer takes before anybody reads
# What an upstream may have once its names are written out.
MAX_ENDPOINTS: Final = 1000

FILE_REFERENCE: Final = "file:"
VARIABLE_REFERENCE: Final = "env:"


class InputsError(ValueError):
    """Inputs that do not fit a spec."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Both sorted by name. Equal inputs and an equal image make an equal generation."""

    addresses: tuple[tuple[str, tuple[str, ...]], ...] = ()  # host name: numeric, sorted
    secrets: tuple[tuple[str, str], ...] = dataclasses.field(default=(), repr=False)

    def to_json(self) -> bytes:
        """For the worker alone: it holds the secrets' content."""
        value = {"v": INPUTS_VERSION, "addresses": self.addresses, "secrets": self.secrets}
        return json.dumps(value, separators=(",", ":")).encode()

    @staticmethod
    def from_json(data: bytes) -> Inputs:
        """Raises `InputsError`, which never quotes what it was given."""
        try:
            value = json.loads(data)
        except ValueError:
            raise InputsError("the generation's inputs are not JSON") from None
        if not isinstance(value, dict) or value.pop("v", None) != INPUTS_VERSION:
            raise InputsError(f"the generation's inputs are not of version {INPUTS_VERSION}")
        try:
            return decode(Inputs, value, "inputs")
        except SpecError:
            raise InputsError("the generation's inputs have another form") from None


NO_INPUTS: Final = Inputs()


def is_reference(text: str) -> bool:
    """Whether a value names a secret instead of being one."""
    return text.startswith((FILE_REFERENCE, VARIABLE_REFERENCE))


def host_names(spec: AppSpec) -> tuple[str, ...]:
    """The endpoints that are names and not addresses, sorted."""
    endpoints = (endpoint for upstream in spec.upstreams for endpoint in upstream.endpoints)
    return tuple(sorted({endpoint.address for endpoint in endpoints if is_name(endpoint)}))


def references(spec: AppSpec) -> tuple[str, ...]:
    """The secrets that the spec names, sorted."""
    return tuple(sorted({reference for edits in _edits(spec) for _, reference in edits.secrets}))


def is_name(endpoint: EndpointSpec) -> bool:
    """Whether the endpoint is a host name: an address has a colon, or digits and dots alone."""
    return ":" not in endpoint.address and not set(endpoint.address) <= set("0123456789.")


def filled(spec: AppSpec, inputs: Inputs) -> AppSpec:
    """The spec with addresses for names, and contents for references: what an engine is built of.

    Raises `InputsError` for a name or a reference that the inputs lack.
    """
    if not host_names(spec) and not references(spec):
        return spec
    addresses, secrets = dict(inputs.addresses), dict(inputs.secrets)
    return dataclasses.replace(
        spec,
        routes=tuple(_route(route, secrets) for route in spec.routes),
        upstreams=tuple(_upstream(upstream, addresses) for upstream in spec.upstreams),
    )


def _edits(spec: AppSpec) -> Iterator[HeaderEdits]:
    for route in spec.routes:
        yield from (route.request_headers, route.response_headers)


def _route(route: RouteSpec, secrets: dict[str, str]) -> RouteSpec:
    if not route.request_headers.secrets and not route.response_headers.secrets:
        return route
    return dataclasses.replace(
        route,
        request_headers=_with_secrets(route.request_headers, secrets),
        response_headers=_with_secrets(route.response_headers, secrets),
    )


def _with_secrets(edits: HeaderEdits, secrets: dict[str, str]) -> HeaderEdits:
    given = []
    for name, reference in edits.secrets:
        if reference not in secrets:
            raise InputsError(f"the secret {reference} was not given")
        given.append((name, secrets[reference]))
    return dataclasses.replace(edits, set=tuple(sorted((*edits.set, *given))), secrets=())


def _upstream(upstream: UpstreamSpec, addresses: dict[str, tuple[str, ...]]) -> UpstreamSpec:
    endpoints: dict[tuple[str, int], EndpointSpec] = {}  # two names may stand for one address
    for endpoint in upstream.endpoints:
        given: tuple[str, ...] = (endpoint.address,)
        if is_name(endpoint):
            given = addresses.get(endpoint.address, ())
            if not given:
                raise InputsError(f"no address was given for {endpoint.address}")
        for address in given:
            one = dataclasses.replace(endpoint, address=address)
            endpoints.setdefault((address, endpoint.port), one)
    if len(endpoints) > MAX_ENDPOINTS:
        raise InputsError(
            f"upstream {upstream.name} has {len(endpoints)} endpoints, at most {MAX_ENDPOINTS}"
        )
    return dataclasses.replace(upstream, endpoints=tuple(endpoints.values()))
