"""A small HTTP service in front of procrastinate: every route is a call of the library's own API."""

import argparse
import os
import signal
import threading
from collections.abc import AsyncIterator

from aiohttp import web
from procrastinate import App, PsycopgConnector
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Status

QUEUES = web.AppKey("QUEUES", App)
WORKER = web.AppKey("WORKER", int)
routes = web.RouteTableDef()


@routes.post("/jobs")
async def defer(request: web.Request) -> web.Response:
    """A new job in a queue."""
    given = await request.json()
    task = request.app[QUEUES].configure_task(given["task"], queue=given["queue"])
    return web.json_response({"id": await task.defer_async(number=given["number"])}, status=201)


@routes.post("/queues/{queue}/fetch")
async def fetch(request: web.Request) -> web.Response:
    """The next job of a queue, as a worker takes it; 204 where there is none."""
    manager = request.app[QUEUES].job_manager
    job = await manager.fetch_job([request.match_info["queue"]], request.app[WORKER])
    return web.json_response({"id": job.id, **job.task_kwargs}) if job else web.Response(status=204)


@routes.post("/jobs/{id}/finish")
async def finish(request: web.Request) -> web.Response:
    """Report a job done; 409 where it has ended already."""
    number = int(request.match_info["id"])
    try:
        await request.app[QUEUES].job_manager.finish_job_by_id_async(number, Status.SUCCEEDED, delete_job=False)
    except ConnectorException:
        return web.json_response({"error": "no job that waits or runs"}, status=409)
    return web.json_response({"id": number})


@routes.get("/jobs/{id}")
async def status(request: web.Request) -> web.Response:
    """What has become of a job."""
    found = await request.app[QUEUES].job_manager.get_job_status_async(int(request.match_info["id"]))
    return web.json_response({"status": found.value})


@routes.get("/queues/{queue}")
async def counts(request: web.Request) -> web.Response:
    """How many jobs of a queue have which status."""
    found = await request.app[QUEUES].job_manager.list_queues_async(queue=request.match_info["queue"])
    return web.json_response([{key: count for key, count in queue.items() if count} for queue in found])


@routes.get("/health")
async def health(request: web.Request) -> web.Response:
    """200 when the library finds its tables."""
    return web.Response(status=200 if await request.app[QUEUES].check_connection_async() else 503)


async def queues(app: web.Application) -> AsyncIterator[None]:
    """The library's connections, from the service's start to its end."""
    app[QUEUES] = App(connector=PsycopgConnector(conninfo=os.environ["PERFKIT_DATABASE"], min_size=5, max_size=5))
    async with app[QUEUES].open_async():
        app[WORKER] = await app[QUEUES].job_manager.register_worker()
        yield


def end_with_stdin() -> None:
    """Whoever launched this may be gone without a word; then it ends as on SIGTERM."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    threading.Thread(target=end_with_stdin, daemon=True).start()
    application = web.Application()
    application.add_routes(routes)
    application.cleanup_ctx.append(queues)
    web.run_app(application, host="127.0.0.1", port=port, access_log=None, print=None)
