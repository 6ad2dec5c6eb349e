"""A server of the handshake era, made with the official Python SDK before its second major version.

    server_old.py stdio|sse|streamable-http [PORT]

Its tools ask the client things, say what they do and change what there is: server-everything has
most of that only for clients that said in the handshake that they can be asked.
"""

import asyncio
import sys

from mcp.server.fastmcp import Context, FastMCP
from mcp.types import SamplingMessage, TextContent
from pydantic import BaseModel

transport = sys.argv[1]
port = int(sys.argv[2]) if len(sys.argv) > 2 else 0
server = FastMCP("old", host="127.0.0.1", port=port, log_level="WARNING")
cancelled: list[str] = []


class Person(BaseModel):
    name: str


@server.tool()
async def add(a: int, b: int) -> str:
    return str(a + b)


@server.tool()
async def ask_model(question: str, ctx: Context) -> str:
    answer = await ctx.session.create_message(
        messages=[SamplingMessage(role="user", content=TextContent(type="text", text=question))],
        max_tokens=10,
        related_request_id=ctx.request_id,
    )
    return f"the model says {answer.content.text}"


@server.tool()
async def ask_person(ctx: Context) -> str:
    answer = await ctx.elicit("Who are you?", Person)
    return f"{answer.action} {answer.data.name if answer.action == 'accept' else ''}"


@server.tool()
async def ask_roots(ctx: Context) -> str:
    return " ".join(str(root.uri) for root in (await ctx.session.list_roots()).roots)


@server.tool()
async def steps(count: int, ctx: Context) -> str:
    await ctx.info("begun")
    for number in range(1, count + 1):
        await ctx.report_progress(number, count, f"step {number}")
    return f"{count} steps"


@server.tool()
async def wait(name: str) -> str:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        cancelled.append(name)
        raise
    return "waited"


@server.tool()
async def was_cancelled() -> str:
    return " ".join(cancelled)


@server.tool()
async def grow(name: str, ctx: Context) -> str:
    server.add_tool(lambda: "grown", name=name, description="made at run time")
    await ctx.session.send_tool_list_changed()
    return "grown"


@server.prompt()
def greeting(name: str) -> str:
    return f"Greet {name}"


@server.resource("old://readme")
def readme() -> str:
    return "read me"


server.run(transport)
