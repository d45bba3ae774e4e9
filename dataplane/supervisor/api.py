"""The calls of the supervisor's socket: who may, what is asked, what is answered.

Every failure is `application/problem+json`. Root and the supervisor's own user may change things;
whoever else can open the socket may read.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import dataplane
from dataplane.control.http import Request, Response, json_response, problem
from dataplane.image.listing import NoSuchImage
from dataplane.model.errors import ConfigError, ControlError, DataplaneError, ImageError
from dataplane.model.ledger import Ledger
from dataplane.model.names import APP_NAME, DIGEST, AppName, Digest
from dataplane.model.spec import SpecError, decode
from dataplane.supervisor.desk import Desk, NoSuchApp, NotNow, Standing
from dataplane.supervisor.events import Events
from dataplane.supervisor.fleet import Caller, Fleet, Rollout, Wish
from dataplane.supervisor.logs import Logs
from dataplane.supervisor.metrics import metrics_text
from dataplane.supervisor.openapi import Operation, document
from dataplane.supervisor.planning import Planning
from dataplane.supervisor.rollouts import SwapUnderWay
from dataplane.supervisor.staleness import Staleness

_Call: TypeAlias = Callable[["Api", Request, dict[str, str]], Awaitable[Response]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The body of a call that changes something; every key may be left out."""

    image: str | None
    force: bool
    config_dir: str | None
    environment: dict[str, str] | None
    variables: dict[str, str]  # for secrets
    faults: tuple[str, ...]  # for tests, where the supervisor was started for them
    seal_without: tuple[str, ...]


_NOTHING_ASKED: Final[dict[str, Any]] = {
    "image": None,
    "force": False,
    "config_dir": None,
    "environment": None,
    "variables": {},
    "faults": [],
    "seal_without": [],
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AskedPlan:
    """The body of a plan or an apply; every key may be left out."""

    config_dir: str | None
    environment: dict[str, str] | None
    variables: dict[str, str]
    plan: str | None  # an apply's: the name of the plan that is to be done, or nothing


_NO_PLAN_ASKED: Final[dict[str, Any]] = {
    "config_dir": None,
    "environment": None,
    "variables": {},
    "plan": None,
}


class BadRequest(ControlError):
    """What was sent cannot be understood."""


class Api:
    """Answers requests. Holds nothing of its own but what it was made with."""

    def __init__(
        self,
        *,
        desk: Desk,
        planning: Planning,
        fleet: Fleet,
        logs: Logs,
        events: Events,
        default_wish: Wish,
        allow_faults: bool,
        shown: Callable[[], None] | None = None,
    ) -> None:
        """`shown` is told once counters were read, and before whoever asked has them."""
        self._shown = shown
        self._desk, self._fleet, self._events = desk, fleet, events
        self._logs = logs
        self._planning = planning
        self._default_wish = default_wish
        self._allow_faults = allow_faults

    async def respond(self, request: Request) -> Response:
        """The answer, whatever was asked."""
        route, names = _find(request)
        if route is None:
            return problem(404, f"nothing is at {request.path}")
        call = route.get(request.method)
        if call is None:
            allowed = ", ".join(sorted(route))
            return problem(
                405, f"{request.method} is not for {request.path}", headers=(("allow", allowed),)
            )
        if request.method != "GET" and request.peer.uid not in (0, os.geteuid()):
            return problem(403, "only root and the supervisor's own user may change things")
        try:
            return await call(self, request, names)
        except NoSuchApp as error:
            return problem(404, str(error))
        except (SwapUnderWay, NotNow) as error:
            return problem(409, str(error))
        except ConfigError as error:
            return problem(422, str(error), findings=_findings(error))
        except (BadRequest, ImageError) as error:
            return problem(422, str(error))
        except DataplaneError as error:
            return problem(502, str(error))

    # --- apps ---------------------------------------------------------------------------------

    async def apps(self, request: Request, names: dict[str, str]) -> Response:
        reports, staleness = [], Staleness()
        for app in self._desk.names():
            with contextlib.suppress(NoSuchApp):  # removed meanwhile
                reports.append(self._desk.report(app, staleness))
            # The kernel adds up a worker's memory for half a millisecond: of a hundred apps that
            # is more than a swap should ever wait.
            await asyncio.sleep(0)
        return json_response({"apps": reports})

    async def app(self, request: Request, names: dict[str, str]) -> Response:
        return json_response(self._desk.report(_app(names)))

    async def put(self, request: Request, names: dict[str, str]) -> Response:
        rolling = self._desk.start(_app(names), self._wish(request, "run"))
        return await self._outcome(request, rolling)

    async def swap(self, request: Request, names: dict[str, str]) -> Response:
        rolling = self._desk.swap(_app(names), self._wish(request, "swap"))
        return await self._outcome(request, rolling)

    async def rollback(self, request: Request, names: dict[str, str]) -> Response:
        image = _asked(request.body).image
        wish = self._wish(request, "rollback", named=False)
        rolling = await self._desk.rollback(_app(names), image, wish)
        return await self._outcome(request, rolling)

    async def stop(self, request: Request, names: dict[str, str]) -> Response:
        wish = self._wish(request, "stop")
        app = _app(names)
        await self._desk.stop(app, for_good=True, caller=wish.caller)
        return json_response(self._desk.report(app))

    async def _outcome(self, request: Request, rolling: Rollout) -> Response:
        wait = request.query.get("wait")
        if wait == "switch":
            ledger = await self._desk.switched(rolling)
        else:
            ledger = await self._desk.ended(rolling)
        return _told(ledger, rolling.error)

    async def history(self, request: Request, names: dict[str, str]) -> Response:
        app = _app(names)
        return json_response({"app": app, "history": await self._desk.history(app)})

    def _wish(self, request: Request, verb: str, *, named: bool = True) -> Wish:
        """`named`: an image is named by its whole digest, or not at all."""
        asked = _asked(request.body)
        if not named:
            asked = dataclasses.replace(asked, image=None)
        if request.query.get("wait") not in (None, "switch", "gone"):
            raise BadRequest("wait may be switch or gone")
        if (asked.faults or asked.seal_without) and not self._allow_faults:
            raise BadRequest("faults are not allowed here")
        if asked.image is not None and DIGEST.fullmatch(asked.image) is None:
            raise BadRequest(f"{asked.image!r} is not a digest: sha256: and 64 hex digits")
        config_dir, environment = self._sources(asked.config_dir, asked.environment)
        return Wish(
            verb=verb,
            caller=Caller(uid=request.peer.uid, pid=request.peer.pid),
            image=None if asked.image is None else Digest(asked.image),
            force=asked.force,
            config_dir=config_dir,
            environment=environment,
            variables=tuple(asked.variables.items()),
            faults=asked.faults,
            seal_without=asked.seal_without,
        )

    # --- the config folder --------------------------------------------------------------------

    async def plan(self, request: Request, names: dict[str, str]) -> Response:
        asked = _asked_plan(request.body)
        if asked.plan is not None:
            raise BadRequest("a plan is named where it is applied")
        wish = self._config_wish(request, asked, "plan")
        return json_response((await self._planning.plan(wish)).to_json())

    async def apply(self, request: Request, names: dict[str, str]) -> Response:
        asked = _asked_plan(request.body)
        wish = self._config_wish(request, asked, "apply")
        return json_response((await self._planning.apply(wish, asked.plan)).to_json())

    def _config_wish(self, request: Request, asked: AskedPlan, verb: str) -> Wish:
        config_dir, environment = self._sources(asked.config_dir, asked.environment)
        return Wish(
            verb=verb,
            caller=Caller(uid=request.peer.uid, pid=request.peer.pid),
            config_dir=config_dir,
            environment=environment,
            variables=tuple(asked.variables.items()),
        )

    def _sources(
        self, folder: str | None, environment: dict[str, str] | None
    ) -> tuple[Path | None, tuple[tuple[str, str], ...]]:
        """Where config files are and what their ${NAME} stand for: the asker's, or our own."""
        config_dir = self._default_wish.config_dir
        if folder is not None:
            config_dir = Path(folder)
            if not config_dir.is_absolute():
                raise BadRequest("config_dir is not an absolute path")
        if environment is None:
            return config_dir, self._default_wish.environment
        return config_dir, tuple(environment.items())

    # --- images -------------------------------------------------------------------------------

    async def images(self, request: Request, names: dict[str, str]) -> Response:
        return json_response({"images": await self._desk.stored().images()})

    async def image(self, request: Request, names: dict[str, str]) -> Response:
        try:
            return json_response(await self._desk.stored().image(names["digest"]))
        except NoSuchImage as error:
            return problem(404, str(error))

    # --- the supervisor -----------------------------------------------------------------------

    async def events(self, request: Request, names: dict[str, str]) -> Response:
        follow = request.query.get("follow", "true") not in ("false", "0", "no")
        if follow:
            return Response(
                status=200, content_type="application/x-ndjson", stream=self._event_lines()
            )
        lines = b"".join(_line(event) for event in self._events.recent())
        return Response(status=200, content_type="application/x-ndjson", body=lines)

    async def _event_lines(self) -> AsyncIterator[bytes]:
        async for event in self._events.follow():
            yield _line(event)

    async def metrics(self, request: Request, names: dict[str, str]) -> Response:
        text = await metrics_text(self._fleet, self._logs)
        if self._shown is not None:
            self._shown()
        return Response(
            status=200,
            content_type="text/plain; version=0.0.4; charset=utf-8",
            body=text.encode(),
        )

    async def healthz(self, request: Request, names: dict[str, str]) -> Response:
        return json_response({"status": "ok", "pid": os.getpid()})

    async def readyz(self, request: Request, names: dict[str, str]) -> Response:
        """Red while it starts, before listeners stop, and where nothing serves that should."""
        standing, missing = self._desk.standing, self._desk.not_serving()
        if standing is not Standing.UP:
            return problem(503, f"the supervisor is {standing.value}")
        if missing and not self._desk.serving():
            return problem(503, f"not serving: {', '.join(missing)}")
        return json_response({"status": "ready", "not_serving": missing})

    async def version(self, request: Request, names: dict[str, str]) -> Response:
        serving = {
            app.name: {
                "generation": app.serving.number,
                "image": app.serving.image.digest,
                "code": app.serving.image.code_version,
            }
            for app in self._fleet.apps.values()
            if app.serving is not None
        }
        return json_response(
            {
                "version": dataplane.__version__,
                "python": sys.version.split()[0],
                "pid": os.getpid(),
                "apps": serving,
            }
        )

    async def openapi(self, request: Request, names: dict[str, str]) -> Response:
        return json_response(document(operation for operation, _ in OPERATIONS))


_CHANGES: Final = (403, 404, 409, 422, 502)
_WAIT: Final = ("wait",)

OPERATIONS: Final[tuple[tuple[Operation, _Call], ...]] = (
    (Operation(method="GET", path="/v1/apps", summary="All apps", answers="Apps"), Api.apps),
    (
        Operation(method="GET", path="/v1/apps/{app}", summary="One app", answers="App",
                  problems=(404,)),
        Api.app,
    ),
    (
        Operation(method="PUT", path="/v1/apps/{app}", summary="Start it, or swap it",
                  answers="Ledger", problems=_CHANGES, body="Wish", query=_WAIT),
        Api.put,
    ),
    (
        Operation(method="POST", path="/v1/apps/{app}/swap", summary="Replace its generation",
                  answers="Ledger", problems=_CHANGES, body="Wish", query=_WAIT),
        Api.swap,
    ),
    (
        Operation(method="POST", path="/v1/apps/{app}/rollback",
                  summary="Swap to the image that served before", answers="Ledger",
                  problems=_CHANGES, body="RollbackWish", query=_WAIT),
        Api.rollback,
    ),
    (
        Operation(method="POST", path="/v1/apps/{app}/stop", summary="Drain and stop it",
                  answers="App", problems=(403, 404, 409)),
        Api.stop,
    ),
    (
        Operation(method="GET", path="/v1/apps/{app}/history", summary="Its generations",
                  answers="History", problems=(404, 502)),
        Api.history,
    ),
    (
        Operation(method="POST", path="/v1/plan", summary="What would change", answers="Plan",
                  problems=(403, 422, 502), body="PlanWish"),
        Api.plan,
    ),
    (
        Operation(method="POST", path="/v1/apply", summary="Change it", answers="Applied",
                  problems=(403, 409, 422, 502), body="ApplyWish"),
        Api.apply,
    ),
    (
        Operation(method="GET", path="/v1/images", summary="The store", answers="StoredImages",
                  problems=(422,)),
        Api.images,
    ),
    (
        Operation(method="GET", path="/v1/images/{digest}", summary="One image",
                  answers="StoredImage", problems=(404, 422)),
        Api.image,
    ),
    (
        Operation(method="GET", path="/v1/events", summary="What happened, and what happens",
                  answers="application/x-ndjson", query=("follow",)),
        Api.events,
    ),
    (
        Operation(method="GET", path="/v1/openapi.json", summary="This document",
                  answers="Facts"),
        Api.openapi,
    ),
    (
        Operation(method="GET", path="/metrics", summary="Prometheus metrics",
                  answers="text/plain"),
        Api.metrics,
    ),
    (
        Operation(method="GET", path="/healthz", summary="It lives", answers="Facts"),
        Api.healthz,
    ),
    (
        Operation(method="GET", path="/readyz", summary="It is ready", answers="Facts",
                  problems=(503,)),
        Api.readyz,
    ),
    (
        Operation(method="GET", path="/version", summary="Versions and digests", answers="Facts"),
        Api.version,
    ),
)  # fmt: skip


def _routes() -> dict[str, dict[str, _Call]]:
    routes: dict[str, dict[str, _Call]] = {}
    for operation, call in OPERATIONS:
        routes.setdefault(operation.path, {})[operation.method] = call
    return routes


_ROUTES: Final = _routes()


def _find(request: Request) -> tuple[dict[str, _Call] | None, dict[str, str]]:
    words = request.path.split("/")
    for path, calls in _ROUTES.items():
        template = path.split("/")
        if len(template) != len(words):
            continue
        names: dict[str, str] = {}
        for expected, word in zip(template, words, strict=True):
            if expected.startswith("{"):
                names[expected[1:-1]] = word
            elif expected != word:
                break
        else:
            return calls, names
    return None, {}


def _app(names: dict[str, str]) -> AppName:
    if APP_NAME.fullmatch(names["app"]) is None:
        raise NoSuchApp(f"{names['app']!r} is not an app's name")
    return AppName(names["app"])


def _asked(body: bytes) -> Asked:
    try:
        value = json.loads(body) if body.strip() else {}
        if not isinstance(value, dict):
            raise SpecError("the body is no object")
        return decode(Asked, {**_NOTHING_ASKED, **value}, "body")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not understood: {error}") from error


def _asked_plan(body: bytes) -> AskedPlan:
    try:
        value = json.loads(body) if body.strip() else {}
        if not isinstance(value, dict):
            raise SpecError("the body is no object")
        return decode(AskedPlan, {**_NO_PLAN_ASKED, **value}, "body")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not understood: {error}") from error


def _told(ledger: Ledger, error: Exception | None) -> Response:
    """200 with the ledger; a failure is the asker's (422) or green's (502)."""
    if ledger.outcome != "failed":
        return json_response(ledger.to_json())
    if isinstance(error, ConfigError):
        return problem(422, str(error), ledger=ledger.to_json(), findings=_findings(error))
    status = 422 if isinstance(error, ImageError) else 502
    return problem(status, ledger.error or "failed", ledger=ledger.to_json())


def _findings(error: ConfigError) -> list[dict[str, Any]]:
    return [dataclasses.asdict(finding) for finding in error.findings]


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"
