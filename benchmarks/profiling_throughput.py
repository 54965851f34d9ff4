"""How close profiling comes to the largest number of calls that a provider's answer time allows.

    OMP_NUM_THREADS=1 python benchmarks/profiling_throughput.py [--record]

A server on loopback, in a process of its own, answers each chat completion after 50 ms, so 32 calls at once could make
640 per second. Measured is the share of these that is reached by the runner, and by the same client without it. The
clients are a bare one of a few lines, which shows the cost of the runner, and LangChain's ChatOpenAI. The runner keeps
a journal on the disk, with every answer synced. Times differ from machine to machine. Takes about a minute.
"""

import asyncio
import json
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from _record import record
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from unirouter_integrations import UniRouter
from unirouter_integrations.grading import Answer, ModelLike, Price, Usage
from unirouter_integrations.profiling import aprofile_model

CALLS = 1600
AT_ONCE = 32
SECONDS = 0.05
IDEAL = CALLS / AT_ONCE * SECONDS
ROUNDS = 3
PROMPTS = [f"What is {n} times {n % 7}?" for n in range(CALLS)]
COMPLETION = json.dumps(
    {
        "id": "chatcmpl-1",
        "created": 1,
        "model": "m",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "42"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
    }
).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(COMPLETION)


async def read_body(reader: asyncio.StreamReader) -> bytes:
    """Read the body of the next HTTP message."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return await reader.readexactly(int(length.split(b":")[1]))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection, each after 50 ms."""
    try:
        while True:
            await read_body(reader)
            await asyncio.sleep(SECONDS)
            writer.write(HEAD + COMPLETION)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def serve(listening: socket.socket) -> None:
    """Run the server."""

    async def main() -> None:
        server = await asyncio.start_server(answer, sock=listening)
        await server.serve_forever()

    asyncio.run(main())


class BareClient:
    """The smallest client: it sends a request and reads the answer, and no more."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __call__(self, prompt: str) -> Answer:
        """Ask a prompt."""
        reader, writer = self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port)
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}]}).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        completion = json.loads(await read_body(reader))
        self.idle.append((reader, writer))
        usage = completion["usage"]
        text = completion["choices"][0]["message"]["content"]
        return Answer(text, Usage(usage["prompt_tokens"], usage["completion_tokens"]))


async def bare(ask: Callable[[str], Awaitable[object]]) -> None:
    """Make all calls with nothing around them but a limit."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(prompt: str) -> None:
        async with slots:
            await ask(prompt)

    await asyncio.gather(*map(one, PROMPTS))


async def profiled(model: ModelLike, router: UniRouter) -> None:
    """Make the same calls with the runner."""
    examples = [{"prompt": prompt, "reference": "42"} for prompt in PROMPTS]
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "profiles.db"
        profile = await aprofile_model(
            "m", model, examples, router, price=Price(1, 2), journal=journal, max_concurrency=AT_ONCE
        )
    assert profile.metadata["answers"] == CALLS


async def main() -> None:
    """Print the shares of the ideal."""
    router = UniRouter.fit(PROMPTS[:400])
    listening = socket.create_server(("127.0.0.1", 0), backlog=500)
    port = listening.getsockname()[1]
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(listening,), daemon=True)
    server.start()
    client = BareClient(port)
    openai = ChatOpenAI(model="m", base_url=f"http://127.0.0.1:{port}/v1", api_key=SecretStr("none"), max_retries=0)
    runs: dict[str, Callable[[], Awaitable[None]]] = {
        "bare client, no runner": lambda: bare(client),
        "bare client, runner": lambda: profiled(client, router),
        "ChatOpenAI, no runner": lambda: bare(openai.ainvoke),
        "ChatOpenAI, runner": lambda: profiled(openai, router),
    }
    shares: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            began = time.perf_counter()
            await run()
            shares[name].append(IDEAL / (time.perf_counter() - began))
    server.terminate()
    for name, found in shares.items():
        print(f"{name:24} {statistics.median(found):6.1%} of ideal ({min(found):.1%} to {max(found):.1%})")
    record({f"share of the ideal, {name}": statistics.median(found) for name, found in shares.items()})


if __name__ == "__main__":
    asyncio.run(main())
