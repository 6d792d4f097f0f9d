"""Who may ask an agent for what: the gang's token opens all, the one for /progress that alone."""

import asyncio

import aiohttp
import pytest

from finetune_api.contract import progress_token
from finetune_trainer.agent.server import AgentServer

GANG = "the-gang-token"
READS = progress_token(GANG, "2")


@pytest.mark.parametrize(
    ("method", "path", "token", "status"),
    [
        ("GET", "/healthz", "", 200),
        ("GET", "/progress", GANG, 503),  # let in; there is no leader here
        ("GET", "/progress", READS, 503),
        ("GET", "/progress", progress_token(GANG, "1"), 401),  # of another attempt
        ("GET", "/progress", "", 401),
        ("POST", "/v1/beat", READS, 401),
        ("POST", "/v1/beat", GANG, 503),
        ("GET", "/progress/", READS, 401),
        ("GET", "//progress", READS, 401),
    ],
)
def test_a_token_opens_what_it_is_for(method: str, path: str, token: str, status: int) -> None:
    async def test() -> None:
        server = AgentServer(GANG, lambda: True, "2")
        port = await server.listen("127.0.0.1", 0)
        try:
            headers = {"Authorization": f"Bearer {token}"}
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.request(method, f"http://127.0.0.1:{port}{path}", allow_redirects=False) as answer,
            ):
                assert answer.status == status
        finally:
            await server.close()

    asyncio.run(test())
